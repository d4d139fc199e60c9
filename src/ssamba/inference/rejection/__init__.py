"""How unlike the training sounds a sound is, so that what a classifier never met is not named with confidence."""
