// The tensors of a pair that prepare_weights.cu converts, in its argument.
#pragma once

#include "ssamba/conversion.cuh"

typedef Conversion Conversions[8];
