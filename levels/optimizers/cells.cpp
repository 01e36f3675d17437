// LSTM cells of many rows, a window at a time: what `Cells.forward` and `Cells.sweep` say, for CPUs.
//
// Rows are taken in blocks of two vectors of the machine, so that all that a block needs over a whole window stays in
// the processor's cache; within a block everything is [features][rows]. Built by `levels.native` for one number type,
// as F, with the numbers of hidden units and layers known.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, TILE = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, TILE = 4;
#else
constexpr int BYTES = 16, TILE = 4;
#endif

template <class F> struct Number;
template <> struct Number<float> {
    using Integer = int32_t;
    static constexpr int mantissa = 23, degree = 7;
    static constexpr float limit = 43, round = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
};
template <> struct Number<double> {
    using Integer = int64_t;
    static constexpr int mantissa = 52, degree = 13;
    static constexpr double limit = 354, round = 6755399441055744.0;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
};

constexpr double inverse_factorial(int k) { return k < 2 ? 1.0 : inverse_factorial(k - 1) / k; }

template <class F> struct Cells {
    using N = Number<F>;
    using Integer = typename N::Integer;
    typedef F V __attribute__((vector_size(BYTES)));
    typedef Integer I __attribute__((vector_size(BYTES)));
    static constexpr int LANES = BYTES / sizeof(F), ROWS = 2 * LANES;
    struct Row { V a, b; };  // one feature of a block

    static V exp(V x) {
        x = x > N::limit ? V{} + N::limit : x;
        x = x < -N::limit ? V{} - N::limit : x;
        V shifted = x * F(1.4426950408889634) + N::round, n = shifted - N::round;
        V r = x - n * N::ln2_high - n * N::ln2_low, p = V{} + F(inverse_factorial(N::degree));
#pragma GCC unroll 16
        for (int k = N::degree - 1; k >= 0; k--) p = p * r + F(inverse_factorial(k));
        return (V)((I)p + ((I)shifted << N::mantissa));
    }
    static Row sigmoid(Row x) {  // one division for both
        V a = F(1) + exp(-x.a), b = F(1) + exp(-x.b), both = F(1) / (a * b);
        return {b * both, a * both};
    }
    static Row tanh(Row x) {
        Row s = sigmoid({F(2) * x.a, F(2) * x.b});
        return {F(2) * s.a - F(1), F(2) * s.b - F(1)};
    }

    int inputs, hidden, layers;
    const F *params;

    int width(int layer) const { return layer ? hidden : inputs; }
    int gates() const { return 4 * hidden; }
    long weight(int layer) const { return layer ? size(inputs) + (layer - 1) * size(hidden) : 0; }
    long size(int width) const { return (long)(width + hidden + 1) * gates(); }
    long out() const { return weight(layers); }
    long total() const { return out() + hidden + 1; }

    // out[N] += w[.][N]^T x[width]; entries of w are ``across`` apart from output to output, ``along`` in the sum.
    template <int COUNT> static void product(const F *w, long across, long along, const Row *x, int width, Row *out) {
        Row sum[COUNT];
        for (int j = 0; j < COUNT; j++) sum[j] = out[j];
        for (int k = 0; k < width; k++) {
            Row value = x[k];
#pragma GCC unroll 8
            for (int j = 0; j < COUNT; j++) {
                F factor = w[j * across + k * along];
                sum[j].a += value.a * factor;
                sum[j].b += value.b * factor;
            }
        }
        for (int j = 0; j < COUNT; j++) out[j] = sum[j];
    }
    static void products(const F *w, long across, long along, const Row *x, int width, Row *out, int count) {
        int j = 0;
        for (; j + TILE <= count; j += TILE) product<TILE>(w + j * across, across, along, x, width, out + j);
        for (; j + 2 <= count; j += 2) product<2>(w + j * across, across, along, x, width, out + j);
        for (; j < count; j++) product<1>(w + j * across, across, along, x, width, out + j);
    }

    // sums[k][n] += x_t[k] * y_t[n] over all steps t, lane by lane, for KS x 4 of them.
    template <int KS>
    void outer(const Row *x, long x_step, const Row *y, long y_step, int steps, V *sums) const {
        V sum[KS][4] = {};
        for (int t = 0; t < steps; t++, x += x_step, y += y_step)
#pragma GCC unroll 8
            for (int k = 0; k < KS; k++)
#pragma GCC unroll 4
                for (int n = 0; n < 4; n++) {
                    sum[k][n] += x[k].a * y[n].a;
                    sum[k][n] += x[k].b * y[n].b;
                }
        for (int k = 0; k < KS; k++)
            for (int n = 0; n < 4; n++) sums[k * gates() + n] += sum[k][n];
    }
    void outers(const Row *x, long x_step, int width, const Row *y, long y_step, int steps, V *sums) const {
        for (int n = 0; n < gates(); n += 4) {
            int k = 0;
            for (; k + TILE / 2 <= width; k += TILE / 2)
                outer<TILE / 2>(x + k, x_step, y + n, y_step, steps, sums + (long)k * gates() + n);
            for (; k < width; k++) outer<1>(x + k, x_step, y + n, y_step, steps, sums + (long)k * gates() + n);
        }
    }

    static void load(Row *to, const F *from, long features, long stride, int rows) {
        for (long k = 0; k < features; k++, from += stride) {
            if (rows < ROWS) to[k] = Row{};
            std::memcpy(&to[k], from, rows * sizeof(F));
        }
    }
    static void store(F *to, const Row *from, long features, long stride, int rows) {
        for (long k = 0; k < features; k++, to += stride) std::memcpy(to, &from[k], rows * sizeof(F));
    }

    // One layer of one step. ``made``: [gates | c | tanh c | h].
    void step(int layer, const Row *x, const Row *h_old, const Row *c_old, Row *made) const {
        const F *w = params + weight(layer), *bias = w + (long)(width(layer) + hidden) * gates();
        for (int j = 0; j < gates(); j++) made[j] = {V{} + bias[j], V{} + bias[j]};
        products(w, 1, gates(), x, width(layer), made, gates());
        products(w + (long)width(layer) * gates(), 1, gates(), h_old, hidden, made, gates());
        Row *c = made + gates(), *tanh_c = c + hidden, *h = tanh_c + hidden;
        for (int j = 0; j < hidden; j++) {
            Row i = sigmoid(made[j]), f = sigmoid(made[hidden + j]), o = sigmoid(made[3 * hidden + j]);
            Row fresh = tanh(made[2 * hidden + j]);
            made[j] = i, made[hidden + j] = f, made[2 * hidden + j] = fresh, made[3 * hidden + j] = o;
            c[j] = {f.a * c_old[j].a + i.a * fresh.a, f.b * c_old[j].b + i.b * fresh.b};
            tanh_c[j] = tanh(c[j]);
            h[j] = {o.a * tanh_c[j].a, o.b * tanh_c[j].b};
        }
    }
    Row output(const Row *h) const {
        const F *w = params + out();
        Row sum = {V{} + w[hidden], V{} + w[hidden]};
        product<1>(w, 0, 1, h, hidden, &sum);
        return sum;
    }
    // Cotangents of the gates' arguments in place of the gates, of c_old in place of dc.
    void unstep(Row *made, const Row *c_old, const Row *dh, Row *dc) const {
        const Row *tanh_c = made + gates() + hidden;
        for (int j = 0; j < hidden; j++) {
            auto one = [&](auto half) {
                V &i = made[j].*half, &f = made[hidden + j].*half, &fresh = made[2 * hidden + j].*half;
                V &o = made[3 * hidden + j].*half, &later = dc[j].*half, t = tanh_c[j].*half, slope = dh[j].*half;
                V all = later + slope * o * (F(1) - t * t);
                later = all * f;
                o = slope * t * o * (F(1) - o);
                f = all * (c_old[j].*half) * f * (F(1) - f);
                V moved = all * fresh * i * (F(1) - i);
                fresh = all * i * (F(1) - fresh * fresh);
                i = moved;
            };
            one(&Row::a), one(&Row::b);
        }
    }
};

template <class F> void forward(const Cells<F> &cells, long rows, long begin, long end, const F *x, F *const *old,
                                F *const *made, F *out) {
    using Row = typename Cells<F>::Row;
    const int hidden = cells.hidden, layers = cells.layers, each = 7 * hidden;
    std::vector<Row> inputs(std::max(cells.inputs, 1)), state(2 * hidden), work(each * layers);
    for (long r = begin; r < end; r += Cells<F>::ROWS) {
        const int count = std::min<long>(Cells<F>::ROWS, end - r);
        cells.load(inputs.data(), x + r, cells.inputs, rows, count);
        const Row *below = inputs.data();
        for (int layer = 0; layer < layers; layer++) {
            Row *now = &work[layer * each];
            cells.load(&state[0], old[2 * layer] + r, hidden, rows, count);
            cells.load(&state[hidden], old[2 * layer + 1] + r, hidden, rows, count);
            cells.step(layer, below, &state[0], &state[hidden], now);
            below = now + 6 * hidden;
            cells.store(made[2 * layer] + r, below, hidden, rows, count);
            cells.store(made[2 * layer + 1] + r, now + 4 * hidden, hidden, rows, count);
        }
        Row result = cells.output(below);
        cells.store(out + r, &result, 1, rows, count);
    }
}

// ``x`` [steps][inputs][rows], ``slope`` [steps][rows] of the outputs; ``sums`` as the parameters, lane by lane.
template <class F> void sweep(const Cells<F> &cells, int steps, long rows, long stride, long x_step, long slope_step,
                              long begin, long end, const F *x, F *const *old, const F *slope,
                              typename Cells<F>::V *sums) {
    using Row = typename Cells<F>::Row;
    const int hidden = cells.hidden, layers = cells.layers, inputs = cells.inputs;
    const long each = 7 * hidden, step = layers * each + inputs, state = 2 * hidden;
    std::vector<Row> work(steps * step), start(layers * each), dstate(layers * state), dbelow(hidden), slopes(steps);
    const Row ones = {typename Cells<F>::V{} + F(1), typename Cells<F>::V{} + F(1)};
    for (long r = begin; r < end; r += Cells<F>::ROWS) {
        const int count = std::min<long>(Cells<F>::ROWS, end - r);
        for (int layer = 0; layer < layers; layer++) {
            Row *first = &start[layer * each];
            cells.load(first + 6 * hidden, old[2 * layer] + r, hidden, stride, count);
            cells.load(first + 4 * hidden, old[2 * layer + 1] + r, hidden, stride, count);
        }
        for (int t = 0; t < steps; t++) {
            Row *now = &work[t * step], *below = now + layers * each;
            const Row *before = t ? now - step : start.data();
            cells.load(below, x + t * x_step + r, inputs, rows, count);
            cells.load(&slopes[t], slope + t * slope_step + r, 1, rows, count);
            for (int layer = 0; layer < layers; layer++, before += each, now += each) {
                cells.step(layer, below, before + 6 * hidden, before + 4 * hidden, now);
                below = now + 6 * hidden;
            }
        }
        std::fill(dstate.begin(), dstate.end(), Row{});
        for (int t = steps - 1; t >= 0; t--) {
            const F *w = cells.params + cells.out();
            const Row *top = &work[t * step + (layers - 1) * each + 6 * hidden], dout = slopes[t];
            typename Cells<F>::V *out = sums + cells.out();
            for (int j = 0; j < hidden; j++) {
                out[j] += top[j].a * dout.a + top[j].b * dout.b;
                dbelow[j] = {dout.a * w[j], dout.b * w[j]};
            }
            out[hidden] += dout.a + dout.b;
            for (int layer = layers - 1; layer >= 0; layer--) {
                Row *dh = &dstate[layer * state], *dc = dh + hidden, *now = &work[t * step + layer * each];
                const Row *before = t ? now - step : &start[layer * each];
                for (int j = 0; j < hidden; j++) dh[j].a += dbelow[j].a, dh[j].b += dbelow[j].b;
                cells.unstep(now, before + 4 * hidden, dh, dc);
                const F *w = cells.params + cells.weight(layer);
                const int width = cells.width(layer);
                std::fill(dh, dh + hidden, Row{});
                cells.products(w + (long)width * cells.gates(), cells.gates(), 1, now, cells.gates(), dh, hidden);
                if (layer) {
                    std::fill(dbelow.begin(), dbelow.end(), Row{});
                    cells.products(w, cells.gates(), 1, now, cells.gates(), dbelow.data(), hidden);
                }
            }
        }
        for (int layer = 0; layer < layers; layer++) {
            const int width = cells.width(layer), gates = cells.gates();
            const Row *now = &work[layer * each], *h = now + 6 * hidden;
            const Row *below = layer ? now - hidden : &work[layers * each];
            typename Cells<F>::V *sum = sums + cells.weight(layer), *recurrent = sum + (long)width * gates;
            cells.outers(below, step, width, now, step, steps, sum);
            cells.outers(&start[layer * each + 6 * hidden], 0, hidden, now, 0, 1, recurrent);
            cells.outers(h, step, hidden, now + step, step, steps - 1, recurrent);
            cells.outers(&ones, 0, 1, now, step, steps, recurrent + (long)hidden * gates);
        }
    }
}

// Rows in so many parts, each in whole blocks and by a thread.
template <class F, class Work> void shared(long rows, long parts, Work work) {
    const long blocks = (rows + Cells<F>::ROWS - 1) / Cells<F>::ROWS;
    auto part = [&](long p) {
        work(p, p * blocks / parts * Cells<F>::ROWS, std::min(rows, (p + 1) * blocks / parts * Cells<F>::ROWS));
    };
    std::vector<std::thread> others;
    for (long p = 1; p < parts; p++) others.emplace_back(part, p);
    part(0);
    for (auto &other : others) other.join();
}

// What Python calls: all groups, each with weights of its own. States are [groups][hidden][rows], those that `sweep`
// reads a piece of what has ``stride`` rows.
template <class F> struct Call {
    int groups, inputs, hidden, layers, threads;
    long rows, stride;
    const F *params;

    Cells<F> cells(int group) const {
        Cells<F> first{inputs, hidden, layers, params};
        first.params += group * first.total();
        return first;
    }
    std::vector<F *> states(F *const *all, int group) const {
        std::vector<F *> own(all, all + 2 * layers);
        for (F *&state : own) state += group * hidden * stride;
        return own;
    }
    long parts(long least) const { return std::max(1L, std::min<long>(threads, rows / least)); }

    void forward(const F *x, F *const *old, F *const *made, F *out) const {
        for (int g = 0; g < groups; g++) {
            const auto before = states(old, g), after = states(made, g);
            shared<F>(rows, parts(4096), [&](long, long begin, long end) {
                ::forward<F>(cells(g), rows, begin, end, x + g * inputs * rows, before.data(), after.data(),
                             out + g * rows);
            });
        }
    }
    void sweep(int steps, const F *x, F *const *old, const F *slope, F *slopes) const {
        using V = typename Cells<F>::V;
        for (int g = 0; g < groups; g++) {
            const auto before = states(old, g);
            const long count = parts(256), total = cells(g).total();
            std::vector<std::vector<V>> sums(count, std::vector<V>(total, V{}));
            shared<F>(rows, count, [&](long part, long begin, long end) {
                ::sweep<F>(cells(g), steps, rows, stride, groups * inputs * rows, groups * rows, begin, end,
                           x + g * inputs * rows, before.data(), slope + g * rows, sums[part].data());
            });
            for (long j = 0; j < total; j++) {
                F all = 0;
                for (const auto &sum : sums)
                    for (int lane = 0; lane < Cells<F>::LANES; lane++) all += sum[j][lane];
                slopes[g * total + j] = all;
            }
        }
    }
};

}  // namespace

#define EXPORT(NAME, F)                                                                                        \
    extern "C" void forward_##NAME(const Call<F> *call, const F *x, F *const *old, F *const *made, F *out) {   \
        call->forward(x, old, made, out);                                                                      \
    }                                                                                                          \
    extern "C" void sweep_##NAME(const Call<F> *call, int steps, const F *x, F *const *old, const F *slope,    \
                                 F *slopes) {                                                                  \
        call->sweep(steps, x, old, slope, slopes);                                                             \
    }
EXPORT(float32, float)
EXPORT(float64, double)
