// The Python module `tomfisher._C` and the namespace of its operations, torch.ops.tomfisher_cpp.
//
// Importing the module runs the registrations of every file here. Each group of operations adds its own with
// STABLE_TORCH_LIBRARY_FRAGMENT(tomfisher_cpp, m); their Python side is tomfisher/ops/_backends/cpp.py.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/dispatch.h"

namespace {

std::string cpu_isa() { return tomfisher::cpu::name(tomfisher::cpu::isa()); }

}  // namespace

STABLE_TORCH_LIBRARY(tomfisher_cpp, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(tomfisher_cpp, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", "C++ operations of tomfisher.", -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
