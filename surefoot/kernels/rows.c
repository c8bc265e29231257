/* Loops over the rows of packed float32 tables that torch would spread over many small operations.

   Every row is computed by one thread from first to last, so the numbers do not depend on how many threads there are.
   Sums inside a row run in vector lanes, in an order that the compiler chooses once. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK (4 * LANES) /* scores that are made at once */
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

/* s = exp(s - most) for the first n, and 0 up to whole lanes (for which there is room); returns their sum. */
static inline float exponentials(float *restrict s, int64_t n, float most) {
  float sum[LANES] = {0}, all = 0.0f;
  for (int64_t j = n; j % LANES; j++) s[j] = -INFINITY;
  for (int64_t j = 0; j < n; j += LANES)
#pragma omp simd
    for (int t = 0; t < LANES; t++) {
      s[j + t] = exp_of(s[j + t] - most);
      sum[t] += s[j + t];
    }
  for (int t = 0; t < LANES; t++) all += sum[t];
  return all;
}

/* The same with the greatest of them, which it finds, for `most`. */
static inline float softmax(float *restrict s, int64_t n, float *most) {
  *most = greatest(s, n);
  return exponentials(s, n, *most);
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

typedef float Lanes __attribute__((vector_size(4 * LANES))); /* what stays in registers */

static inline Lanes load(const float *x) {
  Lanes v;
  memcpy(&v, x, sizeof v);
  return v;
}

static inline void save(float *x, Lanes v) { memcpy(x, &v, sizeof v); }

/* s[j] = q . column j of kt [w ld], for j < count and, in whole lanes, some beyond (ld, a multiple of LANES, at most). */
static inline void scores(const float *restrict q, const float *restrict kt, int64_t ld, int64_t count, int64_t w,
                          float *restrict s) {
  int64_t j = 0; /* wide steps, even where a part of them is not asked for: sums side by side hide each other's wait */
  while (j < count) {
    const float *at = kt + j;
    Lanes a = {0}, b = {0}, c = {0}, e = {0};
    if (count - j > 2 * LANES && j + 4 * LANES <= ld) {
      for (int64_t d = 0; d < w; d++, at += ld) {
        a += q[d] * load(at);
        b += q[d] * load(at + LANES);
        c += q[d] * load(at + 2 * LANES);
        e += q[d] * load(at + 3 * LANES);
      }
      save(s + j, a), save(s + j + LANES, b), save(s + j + 2 * LANES, c), save(s + j + 3 * LANES, e);
      j += 4 * LANES;
    } else if (count - j > LANES) {
      for (int64_t d = 0; d < w; d++, at += ld) {
        a += q[d] * load(at);
        b += q[d] * load(at + LANES);
      }
      save(s + j, a), save(s + j + LANES, b);
      j += 2 * LANES;
    } else {
      for (int64_t d = 0; d + 1 < w; d += 2, at += 2 * ld) { /* w is even */
        a += q[d] * load(at);
        b += q[d + 1] * load(at + ld);
      }
      save(s + j, a + b);
      j += LANES;
    }
  }
}

/* out = sum_j s[j] v[j]; v [count w]. */
static inline void mix(const float *restrict s, const float *restrict v, int64_t count, int64_t w, float *restrict out) {
  int64_t c = 0;
  for (; c + 2 * LANES <= w; c += 2 * LANES) {
    Lanes a = {0}, b = {0}, e = {0}, f = {0}, a2 = {0}, b2 = {0}, e2 = {0}, f2 = {0};
    const float *at = v + c;
    int64_t j = 0;
    for (; j + 4 <= count; j += 4, at += 4 * w) {
      a += s[j] * load(at), a2 += s[j] * load(at + LANES);
      b += s[j + 1] * load(at + w), b2 += s[j + 1] * load(at + w + LANES);
      e += s[j + 2] * load(at + 2 * w), e2 += s[j + 2] * load(at + 2 * w + LANES);
      f += s[j + 3] * load(at + 3 * w), f2 += s[j + 3] * load(at + 3 * w + LANES);
    }
    for (; j < count; j++, at += w) a += s[j] * load(at), a2 += s[j] * load(at + LANES);
    save(out + c, (a + b) + (e + f)), save(out + c + LANES, (a2 + b2) + (e2 + f2));
  }
  for (; c < w; c++) { /* narrow heads, and what is left of odd ones */
    float sum = 0.0f;
    for (int64_t j = 0; j < count; j++) sum += s[j] * v[j * w + c];
    out[c] = sum;
  }
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
    float *row = y + i * (H + 2 * G) * w, s[P + room + 2 * BLOCK], mixed[w];
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
        float *to = out + (i * H + h) * w, most;
        scores(q, pk + none, P, asked, w, s);
        scores(q, k, room, slot + 1, w, s + asked);
        for (int64_t j = 0; j < blank; j++) s[j] = -INFINITY;
        float sum = softmax(s, all, &most);
        mix(s, pv + none * w, asked, w, to);
        mix(s + asked, v, slot + 1, w, mixed);
        for (int64_t d = 0; d < w; d++) to[d] = (to[d] + mixed[d]) / sum;
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
      float *to = out + (token * p->H + h) * w, most;
      turn(of_token(p, token, h), p->cos + token * w, p->sin + token * w, 1.0f, w, q);
      for (int64_t d = 0; d < w; d++) q[d] *= p->scale;
      scores(q, kt, room, all, w, s);
      float sum = softmax(s, all, &most);
      mix(s, v, all, w, to);
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
static inline void update(const float *restrict a, int64_t ld, const float *restrict x, int64_t count, int64_t w,
                          float *restrict out) {
  int64_t c = 0;
  for (; c + LANES <= w; c += LANES) {
    const Lanes x0 = load(x + c), x1 = load(x + w + c), x2 = load(x + 2 * w + c), x3 = load(x + 3 * w + c);
    for (int64_t j = 0; j < count; j++) {
      float *to = out + j * w + c;
      save(to, load(to) + (a[j] * x0 + a[ld + j] * x1) + (a[2 * ld + j] * x2 + a[3 * ld + j] * x3));
    }
  }
  for (; c < w; c++)
    for (int64_t j = 0; j < count; j++)
      for (int64_t b = 0; b < TILE; b++) out[j * w + c] += a[b * ld + j] * x[b * w + c];
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
      for (int64_t b = last - i; b < TILE; b++) { /* the last tile may be short */
        memset(t->q + b * w, 0, w * sizeof(float));
        memset(t->go + b * w, 0, w * sizeof(float));
        memset(t->p + b * ld, 0, ld * sizeof(float));
        memset(t->ds + b * ld, 0, ld * sizeof(float));
      }
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
        exponentials(s, all, whole);
        for (int64_t j = 0; j < all; j += LANES)
#pragma omp simd
          for (int t = 0; t < LANES; t++) ds[j + t] = s[j + t] * (ds[j + t] - dot);
        for (int64_t j = all; j < most; j++) s[j] = ds[j] = 0.0f; /* what later queries of the tile see */
        mix(ds, t->k, all, w, turned);
        for (int64_t d = 0; d < w; d++) turned[d] *= p->scale;
        turn(turned, cos, sin, -1.0f, w, back);
        memcpy(for_y + (token * (H + 2 * p->G) + h) * w, back, sizeof back);
      }
      update(t->ds, ld, t->q, most, w, t->for_k);
      update(t->p, ld, t->go, most, w, t->for_v);
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
void draw(const float *logits, const double *u, int64_t *token, float *logp, int64_t n, int64_t v, float scale) {
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
