// The kernels, built: without torch, whose headers take longer.
#include "attention.h"
#include "nf4.h"
#include "nucleus.h"
#include "rounded.h"

namespace kernels {

template void product(const Rows&, const float*, int64_t, int64_t, int64_t);
template void product(const Rows&, const BFloat16*, int64_t, int64_t, int64_t);
template void product(const Rows&, const Float16*, int64_t, int64_t, int64_t);

template void attend(const Rows&, const Head<float>&, const bool* const*, float);
template void attend(const Rows&, const Head<BFloat16>&, const bool* const*, float);
template void attend(const Rows&, const Head<Float16>&, const bool* const*, float);

}  // namespace kernels
