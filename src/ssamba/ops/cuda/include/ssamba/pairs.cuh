// The pairs whose weights prepare_weights.cu prepares, in its argument.
#pragma once

#include "ssamba/pair_weights.cuh"

typedef PairWeights Pairs[PAIRS];
