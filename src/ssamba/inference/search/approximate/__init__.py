"""Nearest pieces of a large index by lists of neighbours, with faiss (the extra ``[search]``)."""
