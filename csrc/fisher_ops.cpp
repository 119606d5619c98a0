// torch.ops.tomfisher_cpp.{squared_gradient_, square_accumulate_}. Python checks arguments (tomfisher/ops,
// tomfisher/ops/_backends/cpp.py); what is checked here again is what could read or write out of bounds.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "fisher/square_accumulate.h"
#include "fisher/squared_gradient.h"
#include "stable_parallel.h"
#include "tensors.h"

namespace {

using namespace tomfisher;
using torch::stable::Tensor;

void check_operand(const Tensor& operand, const Tensor& F, int64_t columns) {
  STD_TORCH_CHECK(operand.is_cpu() && operand.dim() == 2 && operand.size(1) == columns &&
                      (columns < 2 || operand.stride(1) == 1) && operand.stride(0) >= 0,
                  "Operands must be matrices on the CPU with contiguous rows, as wide as F.");
  STD_TORCH_CHECK(dtype_of(operand) != Dtype::float64 && F.is_cpu(), "Operands must be float16, bfloat16 or float32.");
}

void squared_gradient_(Tensor F, Tensor grad_output, Tensor input, std::vector<int64_t> starts,
                       std::vector<int64_t> stops, std::vector<int64_t> targets, int64_t threads, std::string isa) {
  STD_TORCH_CHECK(F.dim() == 3 && F.is_contiguous() && dtype_of(F) == Dtype::float32,
                  "F must be float32 and contiguous, [slices, d_out, d_in].");
  check_operand(grad_output, F, F.size(1));
  check_operand(input, F, F.size(2));
  const int64_t tokens = grad_output.size(0);
  STD_TORCH_CHECK(input.size(0) == tokens && dtype_of(input) == dtype_of(grad_output),
                  "Operands must share their number of rows and their dtype.");
  STD_TORCH_CHECK(starts.size() == stops.size() && starts.size() == targets.size(), "Needs one target per segment.");
  fisher::Problem problem{static_cast<float*>(F.mutable_data_ptr()),
                          F.size(1),
                          F.size(2),
                          grad_output.const_data_ptr(),
                          input.const_data_ptr(),
                          grad_output.stride(0),
                          input.stride(0),
                          dtype_of(input),
                          {}};
  for (size_t s = 0; s < starts.size(); ++s) {
    STD_TORCH_CHECK(0 <= starts[s] && starts[s] <= stops[s] && stops[s] <= tokens, "Segment ", s, " reaches outside.");
    STD_TORCH_CHECK(0 <= targets[s] && targets[s] < F.size(0), "Target ", s, " is no slice of F.");
    problem.segments.push_back({starts[s], stops[s], targets[s]});
  }
  fisher::squared_gradient(problem, isa_of(isa), threads_of(threads), torch_parallel);
}

void square_accumulate_(std::vector<Tensor> F, std::vector<Tensor> gradients, int64_t threads, std::string isa) {
  STD_TORCH_CHECK(F.size() == gradients.size(), "Needs one gradient per F.");
  std::vector<fisher::Pair> pairs;
  for (size_t i = 0; i < F.size(); ++i) {
    STD_TORCH_CHECK(is_plain(F[i]) && is_plain(gradients[i]) && dtype_of(F[i]) == Dtype::float32 &&
                        F[i].numel() == gradients[i].numel(),
                    "Pairs must be contiguous on the CPU, of one size, and F float32.");
    pairs.push_back({static_cast<float*>(F[i].mutable_data_ptr()), gradients[i].const_data_ptr(), F[i].numel(),
                     dtype_of(gradients[i])});
  }
  fisher::square_accumulate(pairs, isa_of(isa), threads_of(threads), torch_parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m) {
  m.def(
      "squared_gradient_(Tensor(a!) F, Tensor grad_output, Tensor input, int[] starts, int[] stops, int[] targets, "
      "int threads, str isa=\"\") -> ()");
  m.def("square_accumulate_(Tensor(a!)[] F, Tensor[] gradients, int threads, str isa=\"\") -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CPU, m) {
  m.impl("squared_gradient_", TORCH_BOX(&squared_gradient_));
  m.impl("square_accumulate_", TORCH_BOX(&square_accumulate_));
}
