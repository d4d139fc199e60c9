"""The parts of a report: each takes what is known of a run and gives a section, or the reason why there is none."""
