"""Charts as SVG text and spectrograms as small PNG pictures, without a drawing library."""
