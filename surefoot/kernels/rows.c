/* Loops over the rows of packed float32 tables that torch would spread over many small operations.

   Every row is computed by one thread from first to last, so the numbers do not depend on how many threads there are.
   Sums inside a row run in vector lanes, in an order that the compiler chooses once. */

#include <float.h>
#include <math.h>
#include <stdint.h>
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
static inline __attribute__((always_inline)) void mix(const float *s, const float *v, int64_t count, const int w,
                                                      float *out) {
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
