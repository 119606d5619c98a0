// Where the numbers are: in memory or in a file, in one piece or several, always read in bounded chunks.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "topk/key.h"

namespace tomfisher::topk {

// A file opened for reading, closed again.
class File {
 public:
  // Throws std::runtime_error with the path and the reason.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::uint64_t size() const { return size_; }
  // Exactly `bytes` bytes from `offset`. Throws std::runtime_error, also where the file has become shorter.
  void read(void* to, std::size_t bytes, std::uint64_t offset) const;

 private:
  std::string path_;
  int descriptor_;
  std::uint64_t size_;
};

// A vector of numbers: `data` in memory, or `count` of them from byte `offset` of `file`.
struct Piece {
  std::int64_t count = 0;
  const void* data = nullptr;
  const File* file = nullptr;
  std::uint64_t offset = 0;
};

struct Chunk {
  std::size_t piece;
  std::int64_t start;  // within the piece
  std::int64_t count;
  std::int64_t index;  // of its first number, over all pieces
};

// All pieces one after another, as chunks by ascending index.
class Source {
 public:
  // Throws std::invalid_argument for a piece that does not lie within its file.
  Source(std::vector<Piece> pieces, Format format);

  Format format() const { return format_; }
  std::int64_t size() const { return size_; }
  const std::vector<Chunk>& chunks() const { return chunks_; }

  // Numbers [chunk.start + skip, + count) of the chunk: in place, or read into `buffer`.
  const void* numbers(const Chunk& chunk, std::vector<unsigned char>& buffer, std::int64_t skip,
                      std::int64_t count) const;
  const void* numbers(const Chunk& chunk, std::vector<unsigned char>& buffer) const {
    return numbers(chunk, buffer, 0, chunk.count);
  }
  bool in_memory() const { return in_memory_; }

 private:
  std::vector<Piece> pieces_;
  std::vector<Chunk> chunks_;
  Format format_;
  std::int64_t size_ = 0;
  bool in_memory_ = true;
};

std::size_t bytes_of(Format format);

// Hands every chunk to one of the threads that ask, in ascending order.
class ChunkQueue {
 public:
  explicit ChunkQueue(const Source& source) : chunks_(source.chunks()) {}

  const Chunk* next() {
    const std::size_t at = next_.fetch_add(1, std::memory_order_relaxed);
    return at < chunks_.size() ? &chunks_[at] : nullptr;
  }
  std::size_t position(const Chunk* chunk) const { return static_cast<std::size_t>(chunk - chunks_.data()); }

 private:
  const std::vector<Chunk>& chunks_;
  std::atomic<std::size_t> next_{0};
};

}  // namespace tomfisher::topk
