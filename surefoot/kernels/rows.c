/* Loops over the rows of packed float32 tables that torch would spread over many small operations.

   Every row is computed by one thread from first to last, so the numbers do not depend on how many threads there are.
   Sums inside a row run in vector lanes, in an order that the compiler chooses once. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK 64 /* scores that are kept in registers */
#define PRAGMA(text) _Pragma(#text)
#define PARALLEL(work) PRAGMA(omp parallel for schedule(static) if ((work) > 200000)) /* else not worth a thread */

/* exp with a relative error below 2e-7, as a loop over it is vectorised; 0 below -87. */
static inline float exp_of(float x) {
  float high = x > 88.0f ? 88.0f : x, n = rintf(high * 1.44269504f);
  float r = fmaf(n, -0.693359375f, high), p = 1.9875691500e-4f;
  r = fmaf(n, 2.12194440e-4f, r);
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  int32_t bits = ((int32_t)(n < -126.0f ? -126.0f : n) + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return x < -87.0f ? 0.0f : p * scale;
}

static inline float greatest(const float *x, int64_t n) {
  float m = -INFINITY;
#pragma omp simd reduction(max : m)
  for (int64_t i = 0; i < n; i++) m = x[i] > m ? x[i] : m;
  return m;
}

/* x += delta (where there is one); h = x / rms(x). [n d] */
void add_norm(float *x, const float *delta, float *h, int64_t n, int64_t d, float eps) {
  PARALLEL(4 * n * d)
  for (int64_t i = 0; i < n; i++) {
    float *row = x + i * d, *to = h + i * d, sum = 0.0f;
    if (delta) {
      const float *more = delta + i * d;
#pragma omp simd
      for (int64_t j = 0; j < d; j++) row[j] += more[j];
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < d; j++) sum += row[j] * row[j];
    float scale = 1.0f / sqrtf(sum / (float)d + eps);
#pragma omp simd
    for (int64_t j = 0; j < d; j++) to[j] = row[j] * scale;
  }
}

/* sum = x + delta (where there is one); h = sum / rms(sum) * weight, and scale = 1 / rms. [n d] */
void norm_forward(const float *x, const float *delta, const float *weight, float *sum, float *h, float *scale, int64_t n,
                  int64_t d, float eps) {
  PARALLEL(4 * n * d)
  for (int64_t i = 0; i < n; i++) {
    const float *row = x + i * d, *more = delta ? delta + i * d : NULL;
    float *total = sum + i * d, *to = h + i * d, squares = 0.0f;
    if (more)
#pragma omp simd
      for (int64_t j = 0; j < d; j++) total[j] = row[j] + more[j];
    else
      memcpy(total, row, d * sizeof *row);
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < d; j++) squares += total[j] * total[j];
    float by = scale[i] = 1.0f / sqrtf(squares / (float)d + eps);
#pragma omp simd
    for (int64_t j = 0; j < d; j++) to[j] = total[j] * by * weight[j];
  }
}

#define RUN 256 /* rows whose gradients of the weight are summed apart: threads do not change the sum */

/* Gradients of `norm_forward`: for_x = for_sum (where there is one) + what comes through the norm; for_weight as one
   partial sum [d] a run of RUN rows. */
void norm_backward(const float *for_sum, const float *for_h, const float *sum, const float *weight, const float *scale,
                   float *for_x, float *for_weight, int64_t n, int64_t d) {
  int64_t runs = (n + RUN - 1) / RUN;
#pragma omp parallel for schedule(static) if (8 * n * d > 200000)
  for (int64_t r = 0; r < runs; r++) {
    float *part = for_weight + r * d;
    memset(part, 0, d * sizeof *part);
    for (int64_t i = r * RUN; i < n && i < (r + 1) * RUN; i++) {
      const float *x = sum + i * d, *grad = for_h + i * d;
      float *to = for_x + i * d, share = 0.0f, by = scale[i];
#pragma omp simd reduction(+ : share)
      for (int64_t j = 0; j < d; j++) {
        float slope = grad[j] * x[j] * by;
        part[j] += slope;
        share += slope * weight[j];
      }
      share *= by * by / (float)d;
      if (for_sum)
#pragma omp simd
        for (int64_t j = 0; j < d; j++) to[j] = for_sum[i * d + j] + grad[j] * weight[j] * by - x[j] * share;
      else
#pragma omp simd
        for (int64_t j = 0; j < d; j++) to[j] = grad[j] * weight[j] * by - x[j] * share;
    }
  }
}

/* silu(gate) * up of rows [gate up], each f wide. */
void gated(const float *both, float *out, int64_t n, int64_t f) {
  PARALLEL(16 * n * f)
  for (int64_t i = 0; i < n; i++) {
    const float *gate = both + 2 * i * f, *up = gate + f;
    float *to = out + i * f;
#pragma omp simd
    for (int64_t j = 0; j < f; j++) to[j] = gate[j] / (1.0f + exp_of(-gate[j])) * up[j];
  }
}

/* Gradient of `gated`. */
void gated_backward(const float *both, const float *grad, float *out, int64_t n, int64_t f) {
  PARALLEL(16 * n * f)
  for (int64_t i = 0; i < n; i++) {
    const float *gate = both + 2 * i * f, *up = gate + f, *slope = grad + i * f;
    float *for_gate = out + 2 * i * f, *for_up = for_gate + f;
#pragma omp simd
    for (int64_t j = 0; j < f; j++) {
      float open = 1.0f / (1.0f + exp_of(-gate[j])), silu = gate[j] * open;
      for_up[j] = slope[j] * silu;
      for_gate[j] = slope[j] * up[j] * (open + silu * (1.0f - open));
    }
  }
}

/* s[j] = q . column j of kt [w ld], for j < count and up to the next multiple of LANES. */
static inline void scores(const float *q, const float *kt, int64_t ld, int64_t count, int64_t w, float *s) {
  int64_t j = 0;
  for (; j + BLOCK <= count; j += BLOCK) {
    float sum[BLOCK] = {0};
    for (int64_t d = 0; d < w; d++)
#pragma omp simd
      for (int t = 0; t < BLOCK; t++) sum[t] += q[d] * kt[d * ld + j + t];
    memcpy(s + j, sum, sizeof sum);
  }
  for (; j < count; j += LANES) {
    float sum[LANES] = {0};
    for (int64_t d = 0; d < w; d++)
#pragma omp simd
      for (int t = 0; t < LANES; t++) sum[t] += q[d] * kt[d * ld + j + t];
    memcpy(s + j, sum, sizeof sum);
  }
}

/* out += sum_j s[j] v[j]; v [count w]. */
static inline __attribute__((always_inline)) void mix(const float *restrict s, const float *restrict v, int64_t count,
                                                      const int w, float *restrict out) {
  for (int c = 0; c < w; c += 32) { /* columns that stay in registers, in two chains of sums */
    const int size = w - c < 32 ? w - c : 32;
    float even[32] = {0}, odd[32] = {0};
    int64_t j = 0;
    for (; j + 2 <= count; j += 2) {
      const float *a = v + j * w + c, *b = a + w;
#pragma omp simd
      for (int t = 0; t < size; t++) {
        even[t] += s[j] * a[t];
        odd[t] += s[j + 1] * b[t];
      }
    }
    if (j < count)
#pragma omp simd
      for (int t = 0; t < size; t++) even[t] += s[j] * v[j * w + c + t];
#pragma omp simd
    for (int t = 0; t < size; t++) out[c + t] += even[t] + odd[t];
  }
}

static inline void mixed(const float *s, const float *v, int64_t count, int w, float *out) {
  if (w == 32)
    mix(s, v, count, 32, out);
  else if (w == 64)
    mix(s, v, count, 64, out);
  else if (w == 128)
    mix(s, v, count, 128, out);
  else
    mix(s, v, count, w, out);
}

/* One step of decoding. Each row's heads [H queries, G keys, G values] of width w are turned by its position (pairs lie
   beside each other), its key and value are written at `slot` of its own cache, and its queries meet the keys of its
   prompt and its own.

   y [n (H+2G)w]; turns [positions w]: cos and sin beside each other; prompts' keys [m G w P], of which the first
   `padding` are none, and values [m G P w]; own keys [n G w room] and values [n G room w]; out [n Hw]. P and room are
   multiples of LANES. */
void attend(float *y, const float *turns, const int64_t *position, const int64_t *group, const int64_t *padding,
            const float *prompt_keys, const float *prompt_values, float *keys, float *values, float *out, int64_t n,
            int64_t H, int64_t G, int64_t w, int64_t P, int64_t room, int64_t slot) {
  int64_t work = n * H * w * (P + slot) * 4;
  PARALLEL(work)
  for (int64_t i = 0; i < n; i++) {
    float *row = y + i * (H + 2 * G) * w, s[P + room + 2 * LANES];
    const float *turn = turns + position[i] * w;
    for (int64_t h = 0; h < H + G; h++)
#pragma omp simd
      for (int64_t d = 0; d < w; d += 2) {
        float a = row[h * w + d], b = row[h * w + d + 1];
        row[h * w + d] = a * turn[d] - b * turn[d + 1];
        row[h * w + d + 1] = a * turn[d + 1] + b * turn[d];
      }
    int64_t none = padding[group[i]] / LANES * LANES; /* whole blocks of padding are skipped */
    int64_t blank = padding[group[i]] - none, asked = P - none, all = asked + slot + 1;
    for (int64_t g = 0; g < G; g++) {
      const float *pk = prompt_keys + (group[i] * G + g) * w * P, *pv = prompt_values + (group[i] * G + g) * P * w;
      float *k = keys + (i * G + g) * w * room, *v = values + (i * G + g) * room * w;
      for (int64_t d = 0; d < w; d++) k[d * room + slot] = row[(H + g) * w + d];
      memcpy(v + slot * w, row + (H + G + g) * w, w * sizeof *v);
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
        const float *q = row + h * w;
        float *to = out + (i * H + h) * w, sum = 0.0f;
        scores(q, pk + none, P, asked, w, s);
        scores(q, k, room, slot + 1, w, s + asked);
        for (int64_t j = 0; j < blank; j++) s[j] = -INFINITY;
        float most = greatest(s, all);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < all; j++) {
          s[j] = exp_of(s[j] - most);
          sum += s[j];
        }
        memset(to, 0, w * sizeof *to);
        mixed(s, pv + none * w, asked, (int)w, to);
        mixed(s + asked, v, slot + 1, (int)w, to);
        for (int64_t d = 0; d < w; d++) to[d] /= sum;
      }
    }
  }
}

/* Packed sequences: prompts, and rows that go on from one. Token ids of sequence i are start[i] .. start[i] + length[i];
   the first m sequences are the prompts, and the rows of prompt p are member[first[p]] .. member[first[p + 1]]. A table
   of tokens is [s (H+2G)w]: queries, keys, values; cos and sin are [s w]; the pairs that turn are w/2 apart. */
typedef struct {
  const float *y, *cos, *sin;
  const int64_t *start, *length, *first, *member;
  int64_t H, G, w;
  float scale;
} Packed;

/* x turned by its position, or (sign -1) back. */
static inline void turn(const float *x, const float *cos, const float *sin, float sign, int64_t w, float *out) {
  int64_t half = w / 2;
#pragma omp simd
  for (int64_t d = 0; d < half; d++) {
    float a = x[d], b = x[d + half];
    out[d] = a * cos[d] - sign * b * sin[d];
    out[d + half] = b * cos[d + half] + sign * a * sin[d + half];
  }
}

static inline const float *of_token(const Packed *p, int64_t token, int64_t head) {
  return p->y + (token * (p->H + 2 * p->G) + head) * p->w;
}

/* Room for one prompt and the longest of its rows, a whole number of lanes. */
static int64_t room_of(const Packed *p, int64_t prompt) {
  int64_t longest = 0;
  for (int64_t r = p->first[prompt]; r < p->first[prompt + 1]; r++)
    longest = p->length[p->member[r]] > longest ? p->length[p->member[r]] : longest;
  return (p->length[prompt] + longest + LANES - 1) / LANES * LANES;
}

/* Keys and values of a sequence as columns (kt, vt [w room]) and rows (k, v [room w]), from place `at`; NULL is left. */
static void lay(const Packed *p, int64_t sequence, int64_t g, int64_t at, int64_t room, float *kt, float *vt, float *k,
                float *v) {
  int64_t w = p->w;
  float key[w];
  for (int64_t i = 0; i < p->length[sequence]; i++, at++) {
    int64_t token = p->start[sequence] + i;
    const float *value = of_token(p, token, p->H + p->G + g);
    turn(of_token(p, token, p->H + g), p->cos + token * w, p->sin + token * w, 1.0f, w, key);
    for (int64_t d = 0; d < w; d++) kt[d * room + at] = key[d];
    if (vt)
      for (int64_t d = 0; d < w; d++) vt[d * room + at] = value[d];
    if (k) memcpy(k + at * w, key, w * sizeof *key);
    if (v) memcpy(v + at * w, value, w * sizeof *value);
  }
}

static void queries_forward(const Packed *p, int64_t sequence, int64_t g, int64_t before, int64_t room, const float *kt,
                            const float *v, float *s, float *out, float *lse) {
  int64_t w = p->w, many = p->H / p->G;
  float q[w];
  for (int64_t i = 0; i < p->length[sequence]; i++) {
    int64_t token = p->start[sequence] + i, all = before + i + 1;
    for (int64_t h = g * many; h < (g + 1) * many; h++) {
      float *to = out + (token * p->H + h) * w, sum = 0.0f;
      turn(of_token(p, token, h), p->cos + token * w, p->sin + token * w, 1.0f, w, q);
      for (int64_t d = 0; d < w; d++) q[d] *= p->scale;
      scores(q, kt, room, all, w, s);
      float most = greatest(s, all);
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < all; j++) {
        s[j] = exp_of(s[j] - most);
        sum += s[j];
      }
      memset(to, 0, w * sizeof *to);
      mixed(s, v, all, (int)w, to);
      for (int64_t d = 0; d < w; d++) to[d] /= sum;
      lse[token * p->H + h] = most + logf(sum);
    }
  }
}

/* Causal attention of m prompts, and of rows after their prompts: out [s Hw], log-sum-exp of the scores [s H]. */
void attention_forward(const float *y, const float *cos, const float *sin, const int64_t *start, const int64_t *length,
                       const int64_t *first, const int64_t *member, float *out, float *lse, int64_t m, int64_t H,
                       int64_t G, int64_t w, float scale) {
  Packed p = {y, cos, sin, start, length, first, member, H, G, w, scale};
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < m * G; task++) {
    int64_t prompt = task / G, g = task % G, room = room_of(&p, prompt), asked = length[prompt];
    float *kt = calloc(room * (2 * w + 1) + BLOCK, sizeof *kt), *v = kt + room * w, *s = v + room * w;
    lay(&p, prompt, g, 0, room, kt, NULL, NULL, v);
    queries_forward(&p, prompt, g, 0, room, kt, v, s, out, lse);
    for (int64_t r = first[prompt]; r < first[prompt + 1]; r++) {
      lay(&p, member[r], g, asked, room, kt, NULL, NULL, v);
      queries_forward(&p, member[r], g, asked, room, kt, v, s, out, lse);
    }
    free(kt);
  }
}

#define TILE 4 /* queries whose updates of keys and values are made together */

/* out[j] += sum_b a[b][j] x[b], for j < count; a [TILE ld], x [TILE w], out [count w]. */
static inline __attribute__((always_inline)) void update(const float *restrict a, int64_t ld, const float *restrict x,
                                                         int64_t count, const int w, float *restrict out) {
  for (int c = 0; c < w; c += 32) {
    const int size = w - c < 32 ? w - c : 32;
    for (int64_t j = 0; j < count; j++) {
      float *to = out + j * w + c;
      const float a0 = a[j], a1 = a[ld + j], a2 = a[2 * ld + j], a3 = a[3 * ld + j];
#pragma omp simd
      for (int t = 0; t < size; t++)
        to[t] += a0 * x[c + t] + a1 * x[w + c + t] + a2 * x[2 * w + c + t] + a3 * x[3 * w + c + t];
    }
  }
}

static inline void updated(const float *a, int64_t ld, const float *x, int64_t count, int w, float *out) {
  if (w == 32)
    update(a, ld, x, count, 32, out);
  else if (w == 64)
    update(a, ld, x, count, 64, out);
  else if (w == 128)
    update(a, ld, x, count, 128, out);
  else
    update(a, ld, x, count, w, out);
}

typedef struct {
  float *kt, *vt, *k, *for_k, *for_v, *p, *ds, *q, *go;
} Scratch;

static void queries_backward(const Packed *p, int64_t sequence, int64_t g, int64_t before, int64_t room,
                             const float *grad, const float *out, const float *lse, const Scratch *t, float *for_y) {
  int64_t w = p->w, H = p->H, many = H / p->G, ld = room + BLOCK, size = p->length[sequence];
  float turned[w], back[w];
  for (int64_t h = g * many; h < (g + 1) * many; h++)
    for (int64_t i = 0; i < size; i += TILE) {
      int64_t last = i + TILE < size ? i + TILE : size, most = before + last;
      memset(t->q, 0, TILE * w * sizeof(float));
      memset(t->go, 0, TILE * w * sizeof(float));
      memset(t->p, 0, TILE * ld * sizeof(float));
      memset(t->ds, 0, TILE * ld * sizeof(float));
      for (int64_t b = 0; b < last - i; b++) {
        int64_t token = p->start[sequence] + i + b, all = before + i + b + 1;
        const float *cos = p->cos + token * w, *sin = p->sin + token * w, *o = out + (token * H + h) * w;
        float *q = t->q + b * w, *go = t->go + b * w, *s = t->p + b * ld, *ds = t->ds + b * ld, dot = 0.0f;
        float whole = lse[token * H + h];
        memcpy(go, grad + (token * H + h) * w, w * sizeof *go);
        turn(of_token(p, token, h), cos, sin, 1.0f, w, q);
        for (int64_t d = 0; d < w; d++) q[d] *= p->scale;
#pragma omp simd reduction(+ : dot)
        for (int64_t d = 0; d < w; d++) dot += go[d] * o[d];
        scores(q, t->kt, room, all, w, s);
        scores(go, t->vt, room, all, w, ds);
#pragma omp simd
        for (int64_t j = 0; j < all; j++) {
          s[j] = exp_of(s[j] - whole);
          ds[j] = s[j] * (ds[j] - dot);
        }
        for (int64_t j = all; j < most + LANES; j++) s[j] = ds[j] = 0.0f; /* what whole lanes left behind */
        memset(turned, 0, sizeof turned);
        mixed(ds, t->k, all, (int)w, turned);
        for (int64_t d = 0; d < w; d++) turned[d] *= p->scale;
        turn(turned, cos, sin, -1.0f, w, back);
        memcpy(for_y + (token * (H + 2 * p->G) + h) * w, back, sizeof back);
      }
      updated(t->ds, ld, t->q, most, (int)w, t->for_k);
      updated(t->p, ld, t->go, most, (int)w, t->for_v);
    }
}

/* Write the gradients of a sequence's keys and values, gathered at places from `at`. */
static void store(const Packed *p, int64_t sequence, int64_t g, int64_t at, const Scratch *t, float *for_y) {
  int64_t w = p->w;
  for (int64_t i = 0; i < p->length[sequence]; i++, at++) {
    int64_t token = p->start[sequence] + i;
    float *to = for_y + (token * (p->H + 2 * p->G) + p->H + g) * w;
    turn(t->for_k + at * w, p->cos + token * w, p->sin + token * w, -1.0f, w, to);
    memcpy(to + p->G * w, t->for_v + at * w, w * sizeof *to);
  }
}

/* Gradient of `attention_forward` with respect to y, for the tokens of all sequences. */
void attention_backward(const float *y, const float *cos, const float *sin, const int64_t *start, const int64_t *length,
                        const int64_t *first, const int64_t *member, const float *out, const float *lse,
                        const float *grad, float *for_y, int64_t m, int64_t H, int64_t G, int64_t w, float scale) {
  Packed p = {y, cos, sin, start, length, first, member, H, G, w, scale};
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < m * G; task++) {
    int64_t prompt = task / G, g = task % G, room = room_of(&p, prompt), asked = length[prompt], each = room * w;
    float *all = calloc(5 * each + 2 * TILE * (room + BLOCK) + 2 * TILE * w, sizeof *all);
    float *rest = all + 5 * each, *after = rest + 2 * TILE * (room + BLOCK);
    Scratch t = {all,
                 all + each,
                 all + 2 * each,
                 all + 3 * each,
                 all + 4 * each,
                 rest,
                 rest + TILE * (room + BLOCK),
                 after,
                 after + TILE * w};
    lay(&p, prompt, g, 0, room, t.kt, t.vt, t.k, NULL);
    queries_backward(&p, prompt, g, 0, room, grad, out, lse, &t, for_y);
    for (int64_t r = first[prompt]; r < first[prompt + 1]; r++) {
      int64_t own = length[member[r]] * w * (int64_t)sizeof(float);
      lay(&p, member[r], g, asked, room, t.kt, t.vt, t.k, NULL);
      memset(t.for_k + asked * w, 0, own);
      memset(t.for_v + asked * w, 0, own);
      queries_backward(&p, member[r], g, asked, room, grad, out, lse, &t, for_y);
      store(&p, member[r], g, asked, &t, for_y);
    }
    store(&p, prompt, g, 0, &t, for_y);
    free(all);
  }
}

/* The token at quantile u of softmax(scale * logits) [n v], and its log-probability (NaN where a logit is). */
void draw(const float *logits, const double *u, float scale, int64_t *token, float *logp, int64_t n, int64_t v) {
  PARALLEL(20 * n * v)
  for (int64_t i = 0; i < n; i++) {
    const float *z = logits + i * v;
    float e[v], most = greatest(z, v) * scale, parts[v / BLOCK + 1];
    double total = 0.0;
#pragma omp simd
    for (int64_t j = 0; j < v; j++) e[j] = exp_of(z[j] * scale - most);
    for (int64_t b = 0; b * BLOCK < v; b++) {
      int64_t end = (b + 1) * BLOCK < v ? (b + 1) * BLOCK : v;
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = b * BLOCK; j < end; j++) sum += e[j];
      parts[b] = sum;
      total += sum;
    }
    double target = u[i] * total, before = 0.0;
    int64_t chosen = -1, b = 0;
    while ((b + 1) * BLOCK < v && before + parts[b] <= target) before += parts[b++];
    for (int64_t j = b * BLOCK; j < v; j++) { /* rounding may leave the target beyond its block, or the last one */
      if (e[j] > 0.0f) chosen = j;
      before += e[j];
      if (chosen == j && before > target) break;
    }
    if (chosen < 0)
      for (int64_t j = 0; j < v; j++)
        if (e[j] > 0.0f) chosen = j;
    token[i] = chosen < 0 ? 0 : chosen;
    logp[i] = z[token[i]] * scale - most - (float)log(total);
  }
}
