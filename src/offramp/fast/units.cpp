// Batch norm and ReLU in one pass over channels-last maps, forward and backward, for a CPU.
//
// R rows (one a pixel, over the whole batch), C channels. Maps come as matrices of rows: z is whole, [R, C]; what follows
// the ReLU lies in any number of parts, [R, width] with any distance between rows, so that it can be written straight
// into the channels of a wider map, and its gradient read from there.
//
// Everything is summed block by block, each block by one thread, and the blocks are added in order: the same bits for any
// number of threads. Loops run over a period of whole rows that is a multiple of 16 numbers long, whatever C is.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

namespace {

using at::Tensor;

constexpr int64_t LANES = 16;
constexpr int64_t BLOCK = 16384;  // numbers in a block: they stay in the second cache for a second pass

// Numbers as they are stored, and as they are computed with.
template <typename T>
struct Stored {
  using Computed = T;
  static inline T read(T value) { return value; }
  static inline T write(T value) { return value; }
};

template <>
struct Stored<uint16_t> {  // bfloat16
  using Computed = float;
  static inline float read(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  }
  static inline uint16_t write(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    return static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
  }
};

template <typename T>
struct Part {
  T* start;
  int64_t stride, first, width;  // between rows; channels of z that lie here
};

template <typename T>
std::vector<Part<T>> parts_of(const std::vector<Tensor>& tensors, int64_t rows, int64_t channels) {
  std::vector<Part<T>> parts;
  int64_t first = 0;
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows, "a part needs as many rows as z");
    TORCH_CHECK(tensor.size(1) <= 1 || tensor.stride(1) == 1, "channels of a part must be neighbours");
    TORCH_CHECK(tensor.element_size() == sizeof(T), "a part needs the type of z");
    parts.push_back({static_cast<T*>(tensor.data_ptr()), tensor.stride(0), first, tensor.size(1)});
    first += tensor.size(1);
  }
  TORCH_CHECK(first == channels, "the parts have ", first, " channels, z has ", channels);
  return parts;
}

struct Shape {
  int64_t rows, channels, period, block_rows, blocks;
  Shape(int64_t rows, int64_t channels) : rows(rows), channels(channels) {
    const int64_t period_rows = LANES / std::gcd(channels, LANES);
    period = channels * period_rows;
    block_rows = std::max<int64_t>(1, BLOCK / period) * period_rows;
    blocks = (rows + block_rows - 1) / block_rows;
  }
  template <typename Work>  // work(block, first row, rows)
  void each_block(const Work& work) const {
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * block_rows;
        work(block, first, std::min(block_rows, rows - first));
      }
    });
  }
};

// A vector of one number a channel, repeated over a period.
template <typename F>
std::vector<F> repeated(const F* values, const Shape& shape) {
  std::vector<F> out(shape.period);
  for (int64_t i = 0; i < shape.period; ++i) out[i] = values[i % shape.channels];
  return out;
}

// Calls work(offset, count) for the periods of `numbers` numbers, the last perhaps shorter.
template <typename Work>
inline void each_period(int64_t numbers, int64_t period, const Work& work) {
  int64_t at = 0;
  for (; at + period <= numbers; at += period) work(at, period);
  if (at < numbers) work(at, numbers - at);
}

// Sums of a period, added up to one for each channel.
template <typename F>
void gathered(const std::vector<F>& sums, const Shape& shape, F* out) {
  std::fill(out, out + shape.channels, F(0));
  for (int64_t i = 0; i < shape.period; ++i) out[i % shape.channels] += sums[i];
}

template <typename T>
void scatter(const T* tile, const std::vector<Part<T>>& parts, int64_t first, int64_t rows, int64_t channels) {
  for (const Part<T>& part : parts)
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(part.start + (first + r) * part.stride, tile + r * channels + part.first, part.width * sizeof(T));
}

template <typename T>
const T* whole(const std::vector<Part<T>>& parts, int64_t channels) {  // the one part that needs no copy
  return parts.size() == 1 && parts[0].stride == channels ? parts[0].start : nullptr;
}

template <typename T>
const T* gather(const std::vector<Part<T>>& parts, int64_t first, int64_t rows, int64_t channels, T* tile) {
  if (const T* start = whole(parts, channels)) return start + first * channels;
  for (const Part<T>& part : parts)
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(tile + r * channels + part.first, part.start + (first + r) * part.stride, part.width * sizeof(T));
  return tile;
}

// Mean and sum of squared distances from it, of each channel, over all rows.
template <typename T, typename F>
void moments(const T* z, const Shape& shape, double* mean, double* squares) {
  const int64_t C = shape.channels;
  std::vector<F> means(shape.blocks * C), distances(shape.blocks * C);
  shape.each_block([&](int64_t block, int64_t first, int64_t rows) {
    const T* start = z + first * C;
    std::vector<F> sums(shape.period, F(0));
    F* sum = sums.data();
    each_period(rows * C, shape.period, [&](int64_t at, int64_t count) {
      const T* from = start + at;
      for (int64_t i = 0; i < count; ++i) sum[i] += Stored<T>::read(from[i]);
    });
    F* own = means.data() + block * C;
    gathered(sums, shape, own);
    for (int64_t c = 0; c < C; ++c) own[c] /= static_cast<F>(rows);
    const std::vector<F> centre = repeated(own, shape);
    const F* middle = centre.data();
    std::fill(sums.begin(), sums.end(), F(0));
    each_period(rows * C, shape.period, [&](int64_t at, int64_t count) {
      const T* from = start + at;
      for (int64_t i = 0; i < count; ++i) {
        const F distance = Stored<T>::read(from[i]) - middle[i];
        sum[i] += distance * distance;
      }
    });
    gathered(sums, shape, distances.data() + block * C);
  });
  std::fill(mean, mean + C, 0.0);
  std::fill(squares, squares + C, 0.0);
  int64_t seen = 0;
  for (int64_t block = 0; block < shape.blocks; ++block) {  // pairwise update of Chan, Golub and LeVeque
    const int64_t rows = std::min(shape.block_rows, shape.rows - block * shape.block_rows);
    const double share = static_cast<double>(rows) / (seen + rows), cross = share * seen;
    for (int64_t c = 0; c < C; ++c) {
      const double step = means[block * C + c] - mean[c];
      mean[c] += step * share;
      squares[c] += distances[block * C + c] + step * step * cross;
    }
    seen += rows;
  }
}

template <typename T, typename F>
void forward(const Tensor& z, const Tensor& gain, const Tensor& shift, double eps, const std::vector<Tensor>& outs,
             Tensor& stats) {
  const Shape shape(z.size(0), z.size(1));
  const int64_t C = shape.channels;
  const T* start = static_cast<const T*>(z.data_ptr());
  const auto parts = parts_of<T>(outs, shape.rows, C);
  std::vector<double> mean(C), squares(C);
  moments<T, F>(start, shape, mean.data(), squares.data());
  F *means = stats.data_ptr<F>(), *variances = means + C, *inverses = variances + C, *scales = inverses + C,
    *shifts = scales + C;
  const F *gains = gain.data_ptr<F>(), *bias = shift.data_ptr<F>();
  for (int64_t c = 0; c < C; ++c) {
    const double inverse = 1.0 / std::sqrt(squares[c] / shape.rows + eps);
    means[c] = static_cast<F>(mean[c]);
    variances[c] = static_cast<F>(squares[c] / std::max<int64_t>(shape.rows - 1, 1));  // what running averages take
    inverses[c] = static_cast<F>(inverse);
    scales[c] = static_cast<F>(gains[c] * inverse);
    shifts[c] = static_cast<F>(bias[c] - mean[c] * gains[c] * inverse);
  }
  const std::vector<F> scale_P = repeated(scales, shape), shift_P = repeated(shifts, shape);
  T* target = const_cast<T*>(whole(parts, C));
  shape.each_block([&](int64_t, int64_t first, int64_t rows) {
    const T* from = start + first * C;
    const std::unique_ptr<T[]> tile(target ? nullptr : new T[rows * C]);
    T* to = target ? target + first * C : tile.get();
    const F *scale = scale_P.data(), *shift = shift_P.data();
    each_period(rows * C, shape.period, [&](int64_t at, int64_t count) {
      const T* in = from + at;
      T* out = to + at;
      for (int64_t i = 0; i < count; ++i) {
        const F value = Stored<T>::read(in[i]) * scale[i] + shift[i];
        out[i] = Stored<T>::write(value < F(0) ? F(0) : value);  // NaN stays NaN
      }
    });
    if (!target) scatter(to, parts, first, rows, C);
  });
}

template <typename T, typename F>
void backward(const Tensor& z, const Tensor& stats, const std::vector<Tensor>& grads, Tensor& dz, Tensor& dgain,
              Tensor& dshift) {
  const Shape shape(z.size(0), z.size(1));
  const int64_t C = shape.channels;
  const T* start = static_cast<const T*>(z.data_ptr());
  const auto parts = parts_of<T>(grads, shape.rows, C);
  const F *means = stats.data_ptr<F>(), *inverses = means + 2 * C, *scales = means + 3 * C, *shifts = means + 4 * C;
  const std::vector<F> mean_P = repeated(means, shape), scale_P = repeated(scales, shape),
                       shift_P = repeated(shifts, shape);
  const T* given = whole(parts, C);  // or else they are gathered where dz will stand
  T* target = static_cast<T*>(dz.data_ptr());
  std::vector<F> firsts(shape.blocks * C), seconds(shape.blocks * C);
  shape.each_block([&](int64_t block, int64_t first, int64_t rows) {
    const T *from = start + first * C, *grad = gather(parts, first, rows, C, target + first * C);
    std::vector<F> sums(shape.period, F(0)), products(shape.period, F(0));
    F *sum = sums.data(), *product = products.data();
    const F *mean = mean_P.data(), *scale = scale_P.data(), *shift = shift_P.data();
    each_period(rows * C, shape.period, [&](int64_t at, int64_t count) {
      const T *in = from + at, *dy = grad + at;
      for (int64_t i = 0; i < count; ++i) {
        const F value = Stored<T>::read(in[i]), given = Stored<T>::read(dy[i]);
        const F passed = value * scale[i] + shift[i] <= F(0) ? F(0) : given;  // past NaN as well
        sum[i] += passed;
        product[i] += passed * (value - mean[i]);
      }
    });
    gathered(sums, shape, firsts.data() + block * C);
    gathered(products, shape, seconds.data() + block * C);
  });
  std::vector<double> first_C(C, 0.0), second_C(C, 0.0);
  for (int64_t block = 0; block < shape.blocks; ++block)
    for (int64_t c = 0; c < C; ++c) {
      first_C[c] += firsts[block * C + c];
      second_C[c] += seconds[block * C + c];
    }
  F *dgains = dgain.data_ptr<F>(), *dshifts = dshift.data_ptr<F>();
  std::vector<F> slope(C), offset(C);  // dz = scale * dy + slope * (z - mean) + offset
  for (int64_t c = 0; c < C; ++c) {
    dgains[c] = static_cast<F>(second_C[c] * inverses[c]);
    dshifts[c] = static_cast<F>(first_C[c]);
    slope[c] = static_cast<F>(-static_cast<double>(scales[c]) * inverses[c] * inverses[c] * second_C[c] / shape.rows);
    offset[c] = static_cast<F>(-static_cast<double>(scales[c]) * first_C[c] / shape.rows);
  }
  const std::vector<F> slope_P = repeated(slope.data(), shape), offset_P = repeated(offset.data(), shape);
  shape.each_block([&](int64_t, int64_t first, int64_t rows) {
    T* to = target + first * C;
    const T *from = start + first * C, *grad = given ? given + first * C : to;
    const F *mean = mean_P.data(), *scale = scale_P.data(), *shift = shift_P.data(), *slope = slope_P.data(),
            *offset = offset_P.data();
    each_period(rows * C, shape.period, [&](int64_t at, int64_t count) {
      const T *in = from + at, *dy = grad + at;
      T* out = to + at;
      for (int64_t i = 0; i < count; ++i) {
        const F value = Stored<T>::read(in[i]), given = Stored<T>::read(dy[i]);
        const F passed = value * scale[i] + shift[i] <= F(0) ? F(0) : given;  // past NaN as well
        out[i] = Stored<T>::write(scale[i] * passed + slope[i] * (value - mean[i]) + offset[i]);
      }
    });
  });
}

at::ScalarType computed(const Tensor& z) { return z.scalar_type() == at::kBFloat16 ? at::kFloat : z.scalar_type(); }

void check(const Tensor& z) {
  TORCH_CHECK(z.dim() == 2 && z.is_contiguous() && z.device().is_cpu(), "z must be a contiguous matrix on the CPU");
  TORCH_CHECK(z.size(0) > 0 && z.size(1) > 0, "z must not be empty");
}

// Fills `outs` and returns [5, C]: mean, unbiased variance, 1 / sqrt(variance + eps), scale, shift.
Tensor norm_relu(const Tensor& z, const Tensor& gain, const Tensor& shift, double eps, std::vector<Tensor> outs) {
  check(z);
  const auto type = computed(z);
  TORCH_CHECK(gain.scalar_type() == type && shift.scalar_type() == type, "gain and shift must be ", type);
  TORCH_CHECK(gain.numel() == z.size(1) && shift.numel() == z.size(1), "gain and shift need one number a channel");
  Tensor stats = at::empty({5, z.size(1)}, z.options().dtype(type));
  const Tensor gains = gain.contiguous(), shifts = shift.contiguous();
  switch (z.scalar_type()) {
    case at::kBFloat16: forward<uint16_t, float>(z, gains, shifts, eps, outs, stats); break;
    case at::kFloat: forward<float, float>(z, gains, shifts, eps, outs, stats); break;
    case at::kDouble: forward<double, double>(z, gains, shifts, eps, outs, stats); break;
    default: TORCH_CHECK(false, "no kernel for ", z.scalar_type());
  }
  return stats;
}

// Gradients of z, gain and shift for those of the outs.
std::tuple<Tensor, Tensor, Tensor> norm_relu_backward(const Tensor& z, const Tensor& stats, std::vector<Tensor> grads) {
  check(z);
  Tensor dz = at::empty_like(z), dgain = at::empty({z.size(1)}, stats.options()), dshift = at::empty_like(dgain);
  switch (z.scalar_type()) {
    case at::kBFloat16: backward<uint16_t, float>(z, stats, grads, dz, dgain, dshift); break;
    case at::kFloat: backward<float, float>(z, stats, grads, dz, dgain, dshift); break;
    case at::kDouble: backward<double, double>(z, stats, grads, dz, dgain, dshift); break;
    default: TORCH_CHECK(false, "no kernel for ", z.scalar_type());
  }
  return {dz, dgain, dshift};
}

}  // namespace

TORCH_LIBRARY(offramp, library) {
  library.def("norm_relu(Tensor z, Tensor gain, Tensor shift, float eps, Tensor(a!)[] outs) -> Tensor");
  library.def("norm_relu_backward(Tensor z, Tensor stats, Tensor[] grads) -> (Tensor, Tensor, Tensor)");
  library.impl("norm_relu", c10::DispatchKey::CPU, norm_relu);
  library.impl("norm_relu_backward", c10::DispatchKey::CPU, norm_relu_backward);
}
