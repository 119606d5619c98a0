// Sums in a fixed order, written once over a vector type V and compiled for each instruction set.
//
// V gives: Reg (16 doubles), zero, add, absolute and store. Load gives: Element and load, 16 entries as a Reg.
// Included by the sum_rows_*.cpp files alone, inside an anonymous namespace.

// One row: lane j adds entries j, j + 16, j + 32, ... and the lanes are added in pairs, 8 apart, 4, 2, 1.
// At most 31 + 4 roundings for an entry. Zeros that fill up the last 16 change nothing.
template <class V>
inline __attribute__((always_inline)) double total(typename V::Reg reg) {
  double lanes[16];
  V::store(lanes, reg);
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) lanes[j] += lanes[j + 8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) lanes[j] += lanes[j + 4];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

template <class V, class Load>
void sum_rows(const void* data, int64_t n, Sums& sums) {
  using Element = typename Load::Element;
  const Element* p = static_cast<const Element*>(data);
  for (int64_t rest = n; rest > 0; rest -= kRow, p += kRow) {
    const int64_t length = rest < kRow ? rest : kRow;
    typename V::Reg all = V::zero(), absolute = V::zero();
    int64_t i = 0;
    for (; i + 16 <= length; i += 16) {
      const typename V::Reg x = Load::load(p + i);
      all = V::add(all, x);
      absolute = V::add(absolute, V::absolute(x));
    }
    if (i < length) {
      Element last[16] = {};
      for (int64_t j = 0; i + j < length; ++j) last[j] = p[i + j];
      const typename V::Reg x = Load::load(last);
      all = V::add(all, x);
      absolute = V::add(absolute, V::absolute(x));
    }
    sums.sum.add(total<V>(all));
    sums.absolute.add(total<V>(absolute));
  }
}

template <class V, class Half, class Bfloat, class Single, class Double>
SumRows choose(Dtype dtype) {
  if (dtype == Dtype::float16) return sum_rows<V, Half>;
  if (dtype == Dtype::bfloat16) return sum_rows<V, Bfloat>;
  if (dtype == Dtype::float32) return sum_rows<V, Single>;
  return sum_rows<V, Double>;
}
