// The inner tile and the packing, written once over a vector type V and compiled for each instruction set.
//
// V gives: Reg (a vector of float), kLanes, kRows and kVectors (height and width of the largest tile), and
// load, store, broadcast, zero, add, multiply_add(a, b, c) = a * b + c, and dot(a, b, c), which is the same for
// packed operands (a sum of two products where they are pairs).
// Included by the kernel_*.cpp files alone, inside an anonymous namespace.

template <class V, int R, int C>
inline __attribute__((always_inline)) void square_into(const typename V::Reg (&sum)[R][C], const Tile& tile) {
  constexpr int kWidth = C * V::kLanes;
  if (tile.width == kWidth) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        float* F = tile.F + r * tile.stride + c * V::kLanes;
        V::store(F, V::multiply_add(sum[r][c], sum[r][c], V::load(F)));
      }
    }
    return;
  }
  // the last panel of a row of F: whole vectors would reach into the next row
  float row[kWidth];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* F = tile.F + r * tile.stride;
    for (int i = 0; i < kWidth; ++i) row[i] = i < tile.width ? F[i] : 0.0f;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      V::store(row + c * V::kLanes, V::multiply_add(sum[r][c], sum[r][c], V::load(row + c * V::kLanes)));
    }
    for (int i = 0; i < tile.width; ++i) F[i] = row[i];
  }
}

// F[r, :] += (sum over tokens of y[t, r] * x[t, :])^2 for R rows and C vectors of F, sample by sample.
// Sums of a piece are formed in registers, token after token; a cut sample's pieces are added in order.
template <class V, int R, int C>
void tile_of(const Tile& tile) {
  for (int r = 0; r < R; ++r) {
    __builtin_prefetch(tile.F + r * tile.stride, 1);
    __builtin_prefetch(tile.F + r * tile.stride + tile.width - 1, 1);
  }
  const float *y = tile.y, *x = tile.x;
  for (int64_t p = 0; p < tile.count; ++p) {
    const Piece& piece = tile.pieces[p];
    typename V::Reg sum[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] = V::zero();
    }
    for (int64_t t = 0; t < piece.packed; ++t, y += V::kRows, x += V::kVectors * V::kLanes) {
      typename V::Reg columns[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) columns[c] = V::load(x + c * V::kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const typename V::Reg row = V::broadcast(y + r);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] = V::dot(row, columns[c], sum[r][c]);
      }
    }
    if (!piece.first || !piece.last) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          float* carry = tile.carry + (r * C + c) * V::kLanes;
          if (!piece.first) sum[r][c] = V::add(V::load(carry), sum[r][c]);
          if (!piece.last) V::store(carry, sum[r][c]);
        }
      }
    }
    if (piece.last) square_into<V, R, C>(sum, tile);
  }
}

template <class V, int C, int R>
void tile_of_height(const Tile& tile) {
  if constexpr (R == 1) {
    tile_of<V, 1, C>(tile);
  } else if (tile.height == R) {
    tile_of<V, R, C>(tile);
  } else {
    tile_of_height<V, C, R - 1>(tile);
  }
}

template <class V, int C>
void tile_of_width(const Tile& tile) {
  if constexpr (C == 1) {
    tile_of_height<V, 1, V::kRows>(tile);
  } else if (tile.width > (C - 1) * V::kLanes) {
    tile_of_height<V, C, V::kRows>(tile);
  } else {
    tile_of_width<V, C - 1>(tile);
  }
}

template <class V>
void any_tile(const Tile& tile) {
  tile_of_width<V, V::kVectors>(tile);
}

// Copies the columns of one packed row's tokens to each panel; what is missing in the last panel becomes zero.
template <class Source, int kPanel>
void pack(const Packing& packing) {
  using Element = typename Source::Element;
  for (int64_t t = 0; t < packing.tokens; t += Source::kFold) {
    const Element* token = static_cast<const Element*>(packing.source) + t * packing.stride;
    const Element* partner = t + 1 < packing.tokens ? token + packing.stride : nullptr;
    float* row = packing.packed + t / Source::kFold * kPanel;
    int64_t rest = packing.width;
    for (; rest >= kPanel; rest -= kPanel, row += packing.panel_stride, token += kPanel) {
      Source::template copy<kPanel>(token, partner, row);
      if (partner != nullptr) partner += kPanel;
    }
    if (rest == 0) continue;
    Element columns[kPanel] = {}, partners[kPanel] = {};
    for (int64_t i = 0; i < rest; ++i) columns[i] = token[i];
    for (int64_t i = 0; i < rest && partner != nullptr; ++i) partners[i] = partner[i];
    Source::template copy<kPanel>(columns, partners, row);
  }
}

template <class V, class Source>
Kernel make_kernel() {
  return {
      V::kRows,   V::kVectors * V::kLanes, Source::kFold, pack<Source, V::kRows>, pack<Source, V::kVectors * V::kLanes>,
      any_tile<V>};
}
