#include "topk/source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace tomfisher::topk {
namespace {

// Small enough to stay in a core's second-level cache between being copied from the page cache and being
// scanned, large enough that the system call does not show.
constexpr std::int64_t kChunkBytes = std::int64_t{1} << 20;

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw std::runtime_error("Cannot read " + path + ": " + what);
}

}  // namespace

std::size_t bytes_of(Format format) { return format == Format::f64 ? 8 : format == Format::f32 ? 4 : 2; }

File::File(const std::string& path) : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0) fail(path, std::strerror(errno));
  struct stat status{};
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(path, "it is no regular file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

File::~File() { ::close(descriptor_); }

void File::read(void* to, std::size_t bytes, std::uint64_t offset) const {
  auto* next = static_cast<unsigned char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::pread(descriptor_, next, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, std::strerror(errno));
    if (got == 0) fail(path_, "it became shorter while it was read");
    next += got;
    bytes -= static_cast<std::size_t>(got);
    offset += static_cast<std::uint64_t>(got);
  }
}

Source::Source(std::vector<Piece> pieces, Format format) : pieces_(std::move(pieces)), format_(format) {
  const auto bytes = static_cast<std::int64_t>(bytes_of(format));
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    if (piece.count < 0) throw std::invalid_argument("A piece cannot hold a negative number of entries.");
    if (piece.file != nullptr) {
      const std::uint64_t room = piece.file->size() - std::min(piece.offset, piece.file->size());
      if (static_cast<std::uint64_t>(piece.count) > room / static_cast<std::uint64_t>(bytes)) {
        throw std::invalid_argument("The entries do not lie within their file.");
      }
      in_memory_ = false;
    }
    const std::int64_t step = kChunkBytes / bytes;
    for (std::int64_t start = 0; start < piece.count; start += step) {
      chunks_.push_back({i, start, std::min(step, piece.count - start), size_ + start});
    }
    size_ += piece.count;
  }
}

const void* Source::numbers(const Chunk& chunk, std::vector<unsigned char>& buffer, std::int64_t skip,
                            std::int64_t count) const {
  const Piece& piece = pieces_[chunk.piece];
  const std::size_t bytes = bytes_of(format_);
  const std::size_t begin = static_cast<std::size_t>(chunk.start + skip) * bytes;
  if (piece.file == nullptr) return static_cast<const unsigned char*>(piece.data) + begin;
  const std::size_t length = static_cast<std::size_t>(count) * bytes;
  if (buffer.size() < length) buffer.resize(length);
  piece.file->read(buffer.data(), length, piece.offset + begin);
  return buffer.data();
}

}  // namespace tomfisher::topk
