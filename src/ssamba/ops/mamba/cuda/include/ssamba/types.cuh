// Element types, chosen by macros.
#pragma once

// DTYPE: the type of activations. T holds the bits of a bfloat16 (1) or float16 (2) value.
#if DTYPE == 0
typedef float T;
#else
typedef unsigned short T;
#endif

// ALTERNATING: one direction, in which every second mixer (k odd) runs from right to left.
#ifdef ALTERNATING
// Whether direction r of mixer k runs from right to left.
#define REVERSED(r, k) (ALTERNATING ? (k) & 1 : (r))
#endif

// WIDE (of the gated output alone): whether the residual stream is float32 where activations have 16 bits.
#ifdef WIDE
#if WIDE
typedef float Stream;
#else
typedef T Stream;
#endif
#endif
