"""CUDA C++ of a warp's way through its steps, the recurrence itself: between ``nvrtc_fragments_parts`` and the kernel.

The elementwise part of eight steps is computed between the steps of the eight before (with ``SPLIT`` 2:
of a warp's half of a batch between the steps of the batch before), the gate of the steps at hand likewise, and outputs
are written between the steps after them. So nothing waits for memory, a product or a special function alone.
"""

WALK = r"""
// What comes into the states is added by the multiplication that decays them: a shorter chain from step to step than a
// product that adds to them, but another product's latency before it, which only many warps hide.
#define ADDS (SPLIT == 1 && !CHUNKED)
#define STAGE ((int)sizeof(Stage) / 2)

// All that a warp carries along.
struct Warp {
  Channels c;
  Places at;
  Copies copies;
  Row stages;
  Shared *own;
  float h[NJ * 4], a2[NJ * 4];  // states, and log2 of what they keep for each unit of delta
  float total[2];               // PHASE 3: sums of delta
  float *delta, *delta_at;      // where this lane reads and writes deltas
  T *y;        // where the outputs of the eight steps (with SPLIT 2: of the batch) before those at hand go
  int y_step, begin, lo, hi, lane, half, g;  // begin: of the first batch, which may lie before the first step
  int now, free;                             // where the batch at hand and the one to come lie, in values
  bool on;

  __device__ __forceinline__ static int after(int stage) { return stage == (STAGES - 1) * STAGE ? 0 : stage + STAGE; }
  // What is elementwise is that of the next batch from here on; the values to go on by for what is at hand.
  __device__ __forceinline__ int turn_over() {
    int on = after(now) - now;
    at.move_prepared(on);
    now += on;
    return on;
  }
  // Waits for the batch in line and sends for the one that its predecessor leaves room for.
  __device__ __forceinline__ void next_batch(int s0) {
    await_copies<STAGES - 3>();
    __syncthreads();
    if (s0 + (STAGES - 1) * STEPS < hi) copies.copy(ahead(stages, free), s0 + (STAGES - 1) * STEPS, hi);
    close_copies();
    free = after(free);
  }
  __device__ __forceinline__ void first_batch() {
#pragma unroll
    for (int i = 0; i < STAGES - 1; ++i) {
      copies.copy(ahead(stages, i * STAGE), begin + i * STEPS, hi);
      close_copies();
    }
    now = 0; free = (STAGES - 1) * STAGE;
    await_copies<STAGES - 2>();
    __syncthreads();
  }
  // All that is elementwise of the first 8 steps of the first batch, or of the warp's half of it.
  __device__ __forceinline__ void prepare(Eight &to) {
    Elementwise work;
    work.all(c, at, 0, delta_at, to);
  }
};

// What runs between the steps of the recurrence: the elementwise part of steps to come, the gate of those at hand, and
// the output of those before. STEP: of 8 or, with SPLIT 2, 16.
struct Between {
  const Channels &c;
  const Places &at;
  int block, block_now;
  float *delta_at, *gate;
  Eight &to;
  const float *sum;
  T *y;
  bool on;
  Elementwise work;

  template <int STEP> __device__ __forceinline__ void after() {
    if constexpr (STEP % SPLIT == SPLIT - 1) work.part<STEP / SPLIT>(c, at, block, delta_at, to);
    if constexpr (SPLIT == 1 && STEP == 5) __syncwarp();  // part 5 has written delta
    if constexpr (PHASE != 3 && STEP == SPLIT) finish(sum, gate, y, on);
    if constexpr (PHASE != 3 && STEP == 6 * SPLIT) find_gate(at, block_now, gate);
  }
};

// Deltas of four steps of this lane's channels g and g + 8.
__device__ __forceinline__ void read_deltas(float (*d)[4], const float *delta) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float4 four = *(const float4 *)(delta + i * 8 * DR);
    d[i][0] = four.x; d[i][1] = four.y; d[i][2] = four.z; d[i][3] = four.w;
  }
}

// B and C of the steps at hand, in fragments.
struct Rows {
  unsigned b[4], c[4];
};

// Steps STEP to the end of its eight, `between` after each. d: deltas of the first four; delta: of all; later: of the
// first four after them.
template <int STEP, class Do>
__device__ __forceinline__ void advance(Warp &w, Row b_rows, float (*d)[4], const float *delta, const float *later,
                                        Eight &eight, Do &between, Rows &rows) {
  constexpr int EACH = 2 * SPLIT, t = STEP % 8, AT = t % EACH * NJ;  // EACH: steps that one ldmatrix serves
  float *h = w.h;
  if constexpr (PHASE == 3 && t % 4 == 0)
#pragma unroll
    for (int i = 0; i < 2; ++i) w.total[i] += (d[i][0] + d[i][1]) + (d[i][2] + d[i][3]);
#if !ADDS
#pragma unroll
  for (int i = 0; i < NJ * 4; ++i) h[i] *= ex2(d[i / 2 % 2][t % 4] * w.a2[i]);
  if constexpr (t == 3) read_deltas(d, delta + 4);
#endif
  if constexpr (t % EACH == 0) {
    read4_turned(rows.b, ahead(b_rows, 7 * t * 8));
    if constexpr (PHASE != 3) read4(rows.c, ahead(b_rows, 2 * SLOTS * 8 + 7 * t * 8));
  }
#if !ADDS
#pragma unroll
  for (int j = 0; j < NJ; ++j) mma1688(h + 4 * j, eight.drive[0], eight.drive[1], rows.b[AT + j]);
#else
  float into[NJ * 4];
#pragma unroll
  for (int j = 0; j < NJ; ++j) product1688(into + 4 * j, eight.drive[0], eight.drive[1], rows.b[AT + j]);
#pragma unroll
  for (int i = 0; i < NJ * 4; ++i) h[i] = h[i] * ex2(d[i / 2 % 2][t % 4] * w.a2[i]) + into[i];
  if constexpr (t == 3) read_deltas(d, delta + 4);
#endif
#if PHASE != 3 && SPLIT == 1
  mma16816(eight.sum, pack2(h[0], h[1]), pack2(h[2], h[3]), pack2(h[4], h[5]), pack2(h[6], h[7]), rows.c[AT],
           rows.c[AT + 1]);
#elif PHASE != 3
  mma1688(eight.sum, pack2(h[0], h[1]), pack2(h[2], h[3]), rows.c[AT]);
#endif
  between.template after<STEP>();
  if constexpr (t < 7)
    advance<STEP + 1>(w, b_rows, d, delta, later, eight, between, rows);
  else if (later)
    read_deltas(d, later);
}

#if SPLIT == 1
// Block BLOCK of 8 steps of the batch at s0, and meanwhile what is elementwise of the block after it.
template <int BLOCK>
__device__ __forceinline__ void walk_eight(Warp &w, int s0, Eight *eight, float (*d)[4], float *gate) {
  constexpr int OTHER = BLOCK ^ 1;
  int on = 0;
  if (BLOCK == 1) {
    w.next_batch(s0);
    on = w.turn_over();
  }
  int before = s0 + 8 * BLOCK - 8 + w.g;
  bool write = w.on && (unsigned)(before - w.lo) < (unsigned)(w.hi - w.lo);
  Between between = {w.c, w.at, OTHER, BLOCK, w.delta_at, gate, eight[OTHER], eight[OTHER].sum, w.y, write};
  Rows rows;
  advance<0>(w, ahead(w.at.b, BLOCK * 512), d, w.delta + 8 * BLOCK, w.delta + 8 * OTHER, eight[BLOCK], between, rows);
  if (BLOCK == 1) w.at.move_at_hand(on);
  w.y += 8 * w.y_step;
}

__device__ __forceinline__ void walk(Warp &w) {
  Eight eight[2] = {};
  float d[2][4], gate[4] = {};
  w.first_batch();
  w.prepare(eight[0]);
  __syncwarp();
  read_deltas(d, w.delta);
#pragma unroll 1
  for (int s0 = w.begin; s0 < w.hi; s0 += STEPS) {
    walk_eight<0>(w, s0, eight, d, gate);
    walk_eight<1>(w, s0, eight, d, gate);
  }
#if PHASE != 3
  int last = w.begin + (w.hi - 1 - w.begin) / STEPS * STEPS + 8 + w.g;
  finish(eight[1].sum, gate, w.y, w.on && (unsigned)(last - w.lo) < (unsigned)(w.hi - w.lo));
#endif
}
#else
// The sums that the other warp left of this warp's half of a batch, which begins at step s0, and the writing of it.
__device__ __forceinline__ void join(const Warp &w, float *sum, int turn) {
  float4 more = w.own->sum[turn][w.half ^ 1][w.lane];
  sum[0] += more.x; sum[1] += more.y; sum[2] += more.z; sum[3] += more.w;
}

__device__ __forceinline__ void walk(Warp &w) {
  Eight mine;  // of this warp's half of a batch
  float d[2][4], gate[4] = {}, sum[4] = {};  // sum: its share of that half of the batch before
  int place = w.half * 8 + w.g, turn = 0;
  w.first_batch();
  w.prepare(mine);
  w.own->drive[0][w.half][w.lane] = make_uint2(mine.drive[0], mine.drive[1]);
#pragma unroll 1
  for (int s0 = w.begin; s0 < w.hi; s0 += STEPS) {
    w.next_batch(s0);
    int before = s0 - STEPS + place, turn_next = turn ^ 1;
    bool write = w.on && s0 > w.begin && (unsigned)(before - w.lo) < (unsigned)(w.hi - w.lo);
    if (PHASE != 3 && s0 > w.begin) join(w, sum, turn_next);
    Eight eight[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      uint2 drive = w.own->drive[turn][n][w.lane];
      eight[n].drive[0] = drive.x; eight[n].drive[1] = drive.y;
#pragma unroll
      for (int i = 0; i < 4; ++i) eight[n].sum[i] = 0.0f;
    }
    float begin[4] = {mine.sum[0], mine.sum[1], mine.sum[2], mine.sum[3]};
    const float *delta = w.delta + turn * 16 * DR;
    read_deltas(d, delta);
    int on = w.turn_over();
    Between between = {w.c, w.at, 0, 0, w.delta_at + turn_next * 16 * DR, gate, mine, sum, w.y, write};
    Rows rows;
    advance<0>(w, w.at.b, d, delta, delta + 8, eight[0], between, rows);
    advance<8>(w, ahead(w.at.b, 512), d, delta + 8, nullptr, eight[1], between, rows);
    w.at.move_at_hand(on);
    w.y += STEPS * w.y_step;
    w.own->drive[turn_next][w.half][w.lane] = make_uint2(mine.drive[0], mine.drive[1]);
#if PHASE != 3
    float theirs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = begin[i] + (w.half ? eight[1].sum[i] : eight[0].sum[i]);
      theirs[i] = w.half ? eight[0].sum[i] : eight[1].sum[i];
    }
    w.own->sum[turn][w.half][w.lane] = make_float4(theirs[0], theirs[1], theirs[2], theirs[3]);
#endif
    turn = turn_next;
  }
  if (PHASE == 3 || w.lo >= w.hi) return;
  __syncthreads();
  join(w, sum, turn ^ 1);
  int last = w.begin + (w.hi - 1 - w.begin) / STEPS * STEPS + place;
  finish(sum, gate, w.y, w.on && (unsigned)(last - w.lo) < (unsigned)(w.hi - w.lo));
}
#endif
"""
