// What the kernels of a mixer's backward that write dx or dz add up of it on the way.
//
// TOKEN_SUMS: whether they leave the sums over tokens of dx and dz as well, of which the gradient of the input
// product's bias is made. Each value is added in float32 before it is rounded; 0 unless it is given.
#pragma once

#ifndef TOKEN_SUMS
#define TOKEN_SUMS 0
#endif
// Rows that a scan's backward leaves in dvec for the clips of a block: the gradients of D and dt_bias, and the sums of
// dz, which only those of direction 0 are.
#define VECTORS (2 + TOKEN_SUMS)
