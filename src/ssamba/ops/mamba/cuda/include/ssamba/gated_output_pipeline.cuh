// The pipeline of gated_output_sm90.cu: the layout of shared memory, and the producer.
#pragma once

#include "ssamba/ptx_sm90.cuh"
#if NEXT
#include "ssamba/gated_output_next_args.cuh"
typedef GatedOutputNextArgs Args;
#else
#include "ssamba/gated_output_args.cuh"
typedef GatedOutputArgs Args;
#endif

#define BN 64                           // channels at a time
#define TILES (D / 8)                   // accumulator tiles of 8 columns
#define TOKENS 128                      // of a tile
#define WO_AT (BN * D * 2)              // byte offsets in a stage: wz, wo, y
#define Y_AT (2 * WO_AT)
#define STAGE (Y_AT + TOKENS * BN * 2)  // bytes of a stage
#define BARS_AT (STAGES * STAGE)        // mbarriers "full" of each stage, then "free"
#define BIAS_AT (BARS_AT + 128)         // z's bias
#define CHUNKS (X / BN)
#if NEXT
// The next pair's x: BX channels at a time, whose weights take the place of wz and wo in a stage.
#define BX 128
#define NEXT_CHUNKS (X / BX)
#define NEXT_BIAS_AT (BIAS_AT + X * 2)
#define TRANSPOSE_AT (NEXT_BIAS_AT + X * 2)  // 2,048 bytes for each warp
#endif

// The current stage of the ring, and the parity of the rounds through it.
struct PipelineState {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) { stage = 0; phase ^= 1; }
  }
};

// The producer. Stages of a tile: the stream, if it has 16 bits; then, for c from 0, y and wo of channels c - 1 with
// wz of channels c, which a consumer reads in one turn; with NEXT at last wx, BX channels at a time. Each block of the
// cluster loads half of the weights for both.
__device__ __forceinline__ void produce(const Args &a, SmemAddr shared, int tiles) {
  PipelineState pipe;
  int rank = cluster_ctarank();
  for (int tile = blockIdx.x; tile - rank < tiles; tile += gridDim.x) {
    for (int c = WIDE ? 0 : -1; c <= CHUNKS; ++c, pipe.advance()) {
      SmemAddr full = shared + BARS_AT + pipe.stage * 8, at = shared + pipe.stage * STAGE;
      mbarrier_wait(full + STAGES * 8, pipe.phase ^ 1);
      if (c < 0) {
        mbarrier_expect_tx(full, TOKENS * D * 2);
        for (int k = 0; k < D / 64; ++k)
          tma_load_2d(at + k * TOKENS * 128, &a.stream_map, k * 64, tile * TOKENS, full);
        continue;
      }
      mbarrier_expect_tx(full, (c < CHUNKS) * BN * D * 2 + (c > 0) * (BN * D * 2 + TOKENS * BN * 2));
      if (c > 0) {
        tma_load_2d(at + Y_AT, &a.y, (c - 1) * BN, tile * TOKENS, full);
        tma_load_2d_multicast(at + WO_AT + rank * D / 2 * 128, &a.wo, (c - 1) * BN, rank * D / 2, full);
      }
      if (c < CHUNKS)
        for (int k = 0; k < D / 64; ++k)
          tma_load_2d_multicast(at + (k * BN + rank * BN / 2) * 128, &a.wz, k * 64, c * BN + rank * BN / 2, full);
    }
#if NEXT
#pragma unroll 1
    for (int c = 0; c < NEXT_CHUNKS; ++c, pipe.advance()) {
      SmemAddr full = shared + BARS_AT + pipe.stage * 8, at = shared + pipe.stage * STAGE;
      mbarrier_wait(full + STAGES * 8, pipe.phase ^ 1);
      mbarrier_expect_tx(full, BX * D * 2);
      for (int k = 0; k < D / 64; ++k)
        tma_load_2d_multicast(at + (k * BX + rank * BX / 2) * 128, &a.wx, k * 64, c * BX + rank * BX / 2, full);
    }
#endif
  }
}
