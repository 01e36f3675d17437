// LSTM cells of many rows: one step, and the derivative of a window; see recursion/accelerate/cells_native.py.
//
// Rows are taken in blocks of two of the machine's vectors, features times rows. What a block needs over a whole window
// stays in the processor's cache: of each step and layer, in this order,
//
//     z       what the gates read: the layer below (or the inputs), the old h, and a row of ones for the bias
//     gates   input, forget, cell, output
//     c
//     tanh c
//
// and of each step then what the output reads, the last h and ones. Weights lie as Python has them: of each layer
// [z][gates], then [h and ones] of the output.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE = 10, SIDE = 4;  // of a vector; sums held in registers at once: pairs, fours
#elif defined(__AVX__)
constexpr int BYTES = 32, TILE = 4, SIDE = 2;
#else
constexpr int BYTES = 16, TILE = 4, SIDE = 2;
#endif

#if defined(__FP_FAST_FMAF)
constexpr bool FUSED = true;  // products and sums are one operation
#else
constexpr bool FUSED = false;
#endif

// ``exp``: coefficients, the highest power's first. Those of float have the least greatest relative error within ln 2 / 2
// of 0, 2.6e-9, among polynomials of that degree that are 1 at 0 (by Remez's exchange); those of double are Taylor's.
// ``log``: how many terms of the series in ((m - 1) / (m + 1))^2 count for m within a factor of sqrt 2 of 1.
template <class F> struct Number;
template <> struct Number<float> {
    using Integer = int32_t;
    static constexpr int mantissa = 23, log = 6;
    static constexpr bool fused = FUSED;  // a product that is not rounded needs no second part of ln 2
    static constexpr float exp[] = {1.40614226e-3f, 8.37905891e-3f, 4.16647717e-2f, 0.166663647f, 0.50000006f, 1, 1};
    static constexpr float limit = 43, round = 12582912, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <> struct Number<double> {
    using Integer = int64_t;
    static constexpr int mantissa = 52, log = 11;
    static constexpr bool fused = false;
    static constexpr double exp[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880,
                                     1. / 40320,      1. / 5040,      1. / 720,      1. / 120,     1. / 24,
                                     1. / 6,          1. / 2,         1,             1};
    static constexpr double limit = 354, round = 6755399441055744;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

// x, but not above the limit nor below its negative; what is not a number stays so.
#if defined(__AVX512F__)  // compilers make four instructions of what is written out below
inline __m512 within(__m512 x, __m512 limit) { return _mm512_max_ps(-limit, _mm512_min_ps(limit, x)); }
inline __m512d within(__m512d x, __m512d limit) { return _mm512_max_pd(-limit, _mm512_min_pd(limit, x)); }
#else
template <class V> V within(V x, V limit) {
    x = x > limit ? limit : x;
    return x < -limit ? -limit : x;
}
#endif

template <class F> struct Vectors {
    typedef F V __attribute__((vector_size(BYTES)));
    typedef typename Number<F>::Integer I __attribute__((vector_size(BYTES)));
    static constexpr int LANES = BYTES / sizeof(F), ROWS = 2 * LANES;
    struct Row {
        V a, b;
    };

    static Row all(F value) { return {V{} + value, V{} + value}; }

    static V exp(V x) {  // within limits whose squares are numbers still
        using N = Number<F>;
        x = within(x, V{} + N::limit);
        const V shifted = x * F(1.4426950408889634) + N::round, n = shifted - N::round;
        const V r = N::fused ? x - n * F(0.6931471805599453) : x - n * N::ln2_high - n * N::ln2_low;
        V sum = V{} + N::exp[0];
#pragma GCC unroll 16
        for (int k = 1; k < int(sizeof(N::exp) / sizeof(F)); k++) sum = sum * r + N::exp[k];
        return (V)((I)sum + ((I)shifted << N::mantissa));
    }
    static V log(V x) {  // of numbers that are not negative
        using N = Number<F>;
        const V least = V{} + std::numeric_limits<F>::min(), half = V{} + F(0.70710678);
        const I tiny = (I)(x < least), offset = (I)(tiny ? x * F(2L << N::mantissa) : x) - (I)half;
        const I n = (offset >> N::mantissa) - (tiny & (N::mantissa + 1));
        const V m = (V)((offset & (((typename N::Integer)1 << N::mantissa) - 1)) + (I)half);
        const V s = (m - F(1)) / (m + F(1)), square = s * s, count = __builtin_convertvector(n, V);
        V sum = V{};
#pragma GCC unroll 16
        for (int k = N::log - 1; k > 0; k--) sum = (sum + F(1) / F(2 * k + 1)) * square;
        const V found = count * N::ln2_high + (F(2) * s + (F(2) * s * sum + count * N::ln2_low));
        return x > std::numeric_limits<F>::max() ? x : x > F(0) ? found : V{} - F(INFINITY);
    }
    static Row sigmoid(Row x) {  // one division for both
        V a = F(1) + exp(-x.a), b = F(1) + exp(-x.b), both = F(1) / (a * b);
        return {b * both, a * both};
    }
    static Row tanh(Row x) {
        Row s = sigmoid({F(2) * x.a, F(2) * x.b});
        return {F(2) * s.a - F(1), F(2) * s.b - F(1)};
    }

    // As Python's: the size and the sign of gradients, ``least`` and ``most`` being exp(-p) and exp(p).
    static void log_and_sign(Row g, F p, F least, F most, Row *out) {
        auto one = [&](auto half) {
            const V value = g.*half, size = value < F(0) ? -value : value;
            out[0].*half = size >= least ? log(size) / p : V{} - F(1);
            out[1].*half = size >= least ? (value > F(0) ? V{} + F(1) : V{} - F(1)) : value * most;
        };
        one(&Row::a), one(&Row::b);
    }

    static void load(Row *to, const F *from, long features, long stride, int rows) {
        for (long k = 0; k < features; k++, from += stride) {
            if (rows == ROWS)
                std::memcpy(&to[k], from, sizeof(Row));
            else
                to[k] = all(0), std::memcpy(&to[k], from, rows * sizeof(F));
            soon(from);
        }
    }
    static void store(F *to, const Row *from, long features, long stride, int rows) {
        for (long k = 0; k < features; k++, to += stride) {
            if (rows == ROWS)
                std::memcpy(to, &from[k], sizeof(Row));
            else
                std::memcpy(to, &from[k], rows * sizeof(F));
            soon(to);
        }
    }
    static void soon(const F *here) {  // the next block's, into the second cache: the first is this one's
        __builtin_prefetch(here + ROWS, 0, 2), __builtin_prefetch(here + ROWS + LANES, 0, 2);
    }

    // out[j] = sum over k of w[j][k] x[k], where w's entries are ``across`` and ``along`` apart.
    template <int COUNT> static void product(const F *w, long across, long along, const Row *x, int width, Row *out) {
        Row sum[COUNT] = {};
#pragma GCC unroll 2
        for (int k = 0; k < width; k++) {
            const Row value = x[k];
#pragma GCC unroll 16
            for (int j = 0; j < COUNT; j++) {
                const F factor = w[j * across + k * along];
                sum[j].a += value.a * factor;
                sum[j].b += value.b * factor;
            }
        }
        for (int j = 0; j < COUNT; j++) out[j] = sum[j];
    }
    static void products(const F *w, long across, long along, const Row *x, int width, Row *out, int count) {
        int j = 0;
        for (; j + TILE <= count; j += TILE) product<TILE>(w + j * across, across, along, x, width, out + j);
        for (; j + 4 <= count; j += 4) product<4>(w + j * across, across, along, x, width, out + j);
        for (; j < count; j++) product<1>(w + j * across, across, along, x, width, out + j);
    }

    // sums[k][n] += x[k] y[n] over all steps, lane by lane; ``y`` a multiple of four.
    template <int COUNT> static void outer(const Row *x, const Row *y, long step, int steps, V *sums, long across) {
        V sum[COUNT][4] = {};
#pragma GCC unroll 2
        for (int t = 0; t < steps; t++, x += step, y += step)
#pragma GCC unroll 8
            for (int k = 0; k < COUNT; k++)
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++) {
                    sum[k][n] += x[k].a * y[n].a;
                    sum[k][n] += x[k].b * y[n].b;
                }
        for (int k = 0; k < COUNT; k++)
            for (int n = 0; n < 4; n++) sums[k * across + n] += sum[k][n];
    }
    static void outers(const Row *x, int width, const Row *y, int count, long step, int steps, V *sums) {
        for (int n = 0; n < count; n += 4) {
            int k = 0;
            for (; k + SIDE <= width; k += SIDE)
                outer<SIDE>(x + k, y + n, step, steps, sums + k * count + n, count);
            for (; k < width; k++) outer<1>(x + k, y + n, step, steps, sums + k * count + n, count);
        }
    }
};

template <class F> struct Cells : Vectors<F> {
    using Row = typename Vectors<F>::Row;
    using V = typename Vectors<F>::V;

    int inputs, hidden, layers;
    F p, least, most;  // of gradients, see ``read``
    const F *params;

    Cells(int inputs, int hidden, int layers, F p, const F *params)
        : inputs(inputs), hidden(hidden), layers(layers), p(p), least(std::exp(-p)), most(std::exp(p)),
          params(params) {}

    int width(int layer) const { return layer ? hidden : inputs; }
    int reads(int layer) const { return width(layer) + hidden + 1; }
    int gates() const { return 4 * hidden; }
    long weights(int layer) const {  // where those of a layer begin, or of the output
        return layer ? (long)(reads(0) + (layer - 1) * reads(1)) * gates() : 0;
    }
    long total() const { return weights(layers) + hidden + 1; }
    int z(int layer) const {  // where a layer begins within a step, or what the output reads
        return layer ? reads(0) + 6 * hidden + (layer - 1) * (reads(1) + 6 * hidden) : 0;
    }
    int act(int layer) const { return z(layer) + reads(layer); }
    int c(int layer) const { return act(layer) + gates(); }
    long step() const { return z(layers) + hidden + 1; }

    int given() const { return p > 0 ? 1 : inputs; }
    // The inputs of a step or, if there is a ``p``, the gradients that they are made of.
    void read(Row *now, const F *from, long stride, int rows) const {
        this->load(now, from, given(), stride, rows);
        if (p > 0) this->log_and_sign(now[0], p, least, most, now);
    }
    void begin(Row *now) const {
        for (int layer = 0; layer < layers; layer++) now[act(layer) - 1] = this->all(1);
        now[step() - 1] = this->all(1);
    }
    // One layer of one step, whose h goes to the layer above.
    void forward(int layer, Row *now, const Row *c_old) const {
        Row *act = now + this->act(layer), *c = now + this->c(layer), *h = now + z(layer + 1);
        this->products(params + weights(layer), 1, gates(), now + z(layer), reads(layer), act, gates());
        for (int j = 0; j < 2 * hidden; j++) act[j] = this->sigmoid(act[j]);
        for (int j = 2 * hidden; j < 3 * hidden; j++) act[j] = this->tanh(act[j]);
        for (int j = 3 * hidden; j < 4 * hidden; j++) act[j] = this->sigmoid(act[j]);
        for (int j = 0; j < hidden; j++) {
            const Row i = act[j], f = act[hidden + j], fresh = act[2 * hidden + j], o = act[3 * hidden + j];
            c[j] = {f.a * c_old[j].a + i.a * fresh.a, f.b * c_old[j].b + i.b * fresh.b};
            const Row t = c[hidden + j] = this->tanh(c[j]);
            h[j] = {o.a * t.a, o.b * t.b};
        }
    }
    Row output(const Row *now) const {
        Row out;
        this->products(params + weights(layers), 0, 1, now + z(layers), hidden + 1, &out, 1);
        return out;
    }
    // Cotangents of the gates' arguments in place of the gates; of c_old in place of those of c.
    void backward(int layer, Row *now, const Row *c_old, const Row *dabove, const Row *dlater, Row *dc) const {
        Row *act = now + this->act(layer);
        const Row *tanh_c = now + c(layer) + hidden;
        for (int j = 0; j < hidden; j++) {
            auto one = [&](auto half) {
                V &i = act[j].*half, &f = act[hidden + j].*half, &fresh = act[2 * hidden + j].*half;
                V &o = act[3 * hidden + j].*half, &later = dc[j].*half;
                const V t = tanh_c[j].*half, dh = dabove[j].*half + dlater[j].*half;
                const V all = later + dh * o * (F(1) - t * t), moved = all * fresh * i * (F(1) - i);
                later = all * f;
                f = all * (c_old[j].*half) * f * (F(1) - f);
                fresh = all * i * (F(1) - fresh * fresh);
                i = moved;
                o = dh * t * o * (F(1) - o);
            };
            one(&Row::a), one(&Row::b);
        }
    }
};

template <class F> struct Call {  // what Python fills; states are [groups][hidden][rows]
    int groups, inputs, hidden, layers, threads, bounded;
    long rows;
    const F *params;
    double p;

    using Row = typename Cells<F>::Row;
    using V = typename Cells<F>::V;
    using Block = std::unique_ptr<Row[]>;
    static constexpr int ROWS = Cells<F>::ROWS;

    Cells<F> cells(int group) const {
        const Cells<F> first(inputs, hidden, layers, p, params);
        return Cells<F>(inputs, hidden, layers, p, params + group * first.total());
    }
    std::vector<F *> states(F *const *all, int group) const {
        std::vector<F *> own(all, all + 2 * layers);
        for (F *&state : own) state += group * hidden * rows;
        return own;
    }
    // Rows in parts of at least so many, whole blocks each and by a thread; returns how many parts there may be.
    long parts(long least) const { return std::max(1L, std::min<long>(threads, rows / least)); }
    template <class Work> void shared(long parts, Work work) const {
        const long blocks = (rows + ROWS - 1) / ROWS;
        auto part = [&](long p) {
            for (long b = p * blocks / parts; b < (p + 1) * blocks / parts; b++)
                work(p, b * ROWS, (int)std::min<long>(ROWS, rows - b * ROWS));
        };
        std::vector<std::thread> others;
        for (long p = 1; p < parts; p++) others.emplace_back(part, p);
        part(0);
        for (auto &other : others) other.join();
    }

    void forward(const F *x, F *const *old, F *const *made, F *out) const {
        const long count = parts(4096);
        for (int g = 0; g < groups; g++, out += rows) {
            const Cells<F> net = cells(g);
            const F *own = x + g * net.given() * rows;
            const auto before = states(old, g), after = states(made, g);
            std::vector<Block> work;
            for (long p = 0; p < count; p++) work.emplace_back(new Row[net.step() + hidden]);
            for (auto &now : work) net.begin(now.get());
            shared(count, [&](long part, long r, int n) {
                Row *now = work[part].get(), *c_old = now + net.step();
                net.read(now, own + r, rows, n);
                for (int layer = 0; layer < layers; layer++) {
                    net.load(now + net.z(layer) + net.width(layer), before[2 * layer] + r, hidden, rows, n);
                    net.load(c_old, before[2 * layer + 1] + r, hidden, rows, n);
                    net.forward(layer, now, c_old);
                    net.store(after[2 * layer] + r, now + net.z(layer + 1), hidden, rows, n);
                    net.store(after[2 * layer + 1] + r, now + net.c(layer), hidden, rows, n);
                }
                const Row result = net.output(now);
                net.store(out + r, &result, 1, rows, n);
            });
        }
    }

    void sweep(int steps, const F *x, F *const *old, const F *dout, F *dparams, F *dx) const {
        const long count = parts(256);
        for (int g = 0; g < groups; g++) {
            const Cells<F> net = cells(g);
            const auto start = states(old, g);
            std::vector<std::vector<V>> sums(count, std::vector<V>(net.total(), V{}));
            std::vector<Block> work;
            for (long p = 0; p < count; p++) work.emplace_back(new Row[steps * net.step()]);
            for (auto &own : work)
                for (int t = 0; t < steps; t++) net.begin(&own[t * net.step()]);
            shared(count, [&](long part, long r, int n) {
                const long here = g * rows + r;
                block(net, steps, x + (g * net.given() * rows + r), start.data(), r, n, dout + here,
                      dx ? dx + (g * inputs * rows + r) : nullptr, work[part].get(), sums[part].data());
            });
            for (long j = 0; j < net.total(); j++) {
                V all = sums[0][j];
                for (long p = 1; p < count; p++) all += sums[p][j];
                for (int half = Cells<F>::LANES / 2; half; half /= 2)
                    for (int lane = 0; lane < half; lane++) all[lane] += all[lane + half];
                *dparams++ = all[0];
            }
        }
    }

    // The window of one block, there and back.
    void block(const Cells<F> &net, int steps, const F *x, F *const *old, long r, int n, const F *dout, F *dx, Row *work,
               V *sums) const {
        const long step = net.step(), x_step = groups * net.given() * rows, gates = net.gates();
        std::vector<Row> begun(layers * hidden), dc(layers * hidden), dz(inputs + (2 * layers - 1) * hidden), slope(hidden + 1);
        std::vector<Row> douts(steps);
        std::fill(dc.begin(), dc.end(), net.all(0)), std::fill(dz.begin(), dz.end(), net.all(0));
        auto c_old = [&](int t, int layer) { return t ? work + (t - 1) * step + net.c(layer) : &begun[layer * hidden]; };
        auto later = [&](int layer) { return &dz[inputs + 2 * layer * hidden]; };  // of h

        for (int layer = 0; layer < layers; layer++) {
            net.load(work + net.z(layer) + net.width(layer), old[2 * layer] + r, hidden, rows, n);
            net.load(&begun[layer * hidden], old[2 * layer + 1] + r, hidden, rows, n);
        }
        for (int t = 0; t < steps; t++) {
            Row *now = work + t * step;
            net.read(now, x + t * x_step, rows, n);
            for (int layer = 0; layer < layers; layer++) {
                net.forward(layer, now, c_old(t, layer));
                const Row *h = now + net.z(layer + 1);
                if (t + 1 < steps) std::copy(h, h + hidden, now + step + net.z(layer) + net.width(layer));
            }
            net.load(&douts[t], dout + t * groups * rows, 1, rows, n);
            if (bounded) {
                const Row y = net.tanh(net.output(now));
                douts[t].a *= F(1) - y.a * y.a, douts[t].b *= F(1) - y.b * y.b;
            }
        }
        for (int t = steps - 1; t >= 0; t--) {
            Row *now = work + t * step;
            const F *w = net.params + net.weights(layers);
            for (int j = 0; j <= hidden; j++) {
                const Row read = now[net.z(layers) + j];
                sums[net.weights(layers) + j] += read.a * douts[t].a + read.b * douts[t].b;
                slope[j] = {w[j] * douts[t].a, w[j] * douts[t].b};
            }
            const Row *above = slope.data();
            for (int layer = layers - 1; layer >= 0; layer--) {
                net.backward(layer, now, c_old(t, layer), above, later(layer), &dc[layer * hidden]);
                const int skipped = layer || dx ? 0 : inputs;  // nobody asks for these, nor for the first h's
                Row *to = later(layer) - net.width(layer) + skipped;
                net.products(net.params + net.weights(layer) + skipped * gates, gates, 1, now + net.act(layer), gates, to,
                             net.width(layer) - skipped + (t ? hidden : 0));
                above = to;
            }
            if (dx) net.store(dx + t * x_step, dz.data(), inputs, rows, n);
        }
        for (int layer = 0; layer < layers; layer++)
            net.outers(work + net.z(layer), net.reads(layer), work + net.act(layer), gates, step, steps,
                       sums + net.weights(layer));
    }
};

}  // namespace

#define EXPORT(NAME, F)                                                                                             \
    extern "C" void forward_##NAME(const Call<F> *call, const F *x, F *const *old, F *const *made, F *out) {        \
        call->forward(x, old, made, out);                                                                           \
    }                                                                                                               \
    extern "C" void sweep_##NAME(const Call<F> *call, int steps, const F *x, F *const *old, const F *dout,          \
                                 F *dparams, F *dx) {                                                               \
        call->sweep(steps, x, old, dout, dparams, dx);                                                              \
    }
EXPORT(float32, float)
EXPORT(float64, double)
