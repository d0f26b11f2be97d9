// Bounds and maxima that propagate NaN. WGSL's clamp, min and max may drop it, and a compiler may take any float for a
// number, so that only its bits tell.

fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// v clamped to ±bound; NaN stays, and the bound is not NaN. Bits of magnitudes are in the order of the magnitudes, NaN's behind infinity's, so that one
// comparison without sign finds those above the bound and no NaN. A clamp and a test for NaN are more operations on adapters
// whose clamp is several.
fn bounded(v: f32, bound: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let bound_bits = bitcast<u32>(bound);
    let is_above = (bits & 0x7fffffffu) - bound_bits - 1u < 0x7f800000u - bound_bits;
    return select(v, bitcast<f32>((bits & 0x80000000u) | bound_bits), is_above);
}

fn bounded4(v: vec4<f32>, bound: f32) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    let bound_bits = vec4<u32>(bitcast<u32>(bound));
    let is_above = (bits & vec4<u32>(0x7fffffffu)) - bound_bits - vec4<u32>(1u) < vec4<u32>(0x7f800000u) - bound_bits;
    return select(v, bitcast<vec4<f32>>((bits & vec4<u32>(0x80000000u)) | bound_bits), is_above);
}

fn at_least(v: f32, low: f32) -> f32 {
    return select(max(v, low), v, is_nan(v));
}

// exp and tanh, which drivers bound themselves: so does SwiftShader, for which e^NaN is ∞. Some tanh overflow to NaN beyond
// about 44; it is 1 long before.
fn exp_of(v: f32) -> f32 {
    return select(exp(v), v, is_nan(v));
}

fn tanh_of(v: f32) -> f32 {
    return select(tanh(clamp(v, -15.0, 15.0)), v, is_nan(v));
}

// Between the bits of floats and integers in their order, NaN by its sign; its own inverse.
fn reordered(bits: i32) -> i32 {
    return bits ^ ((bits >> 31u) & 0x7fffffff);
}

// An integer in the order of floats: the larger for the larger, NaN above all.
fn order_of(v: f32) -> i32 {
    return select(reordered(bitcast<i32>(v)), 0x7fffffff, is_nan(v));
}

// The float that has this order.
fn of_order(order: i32) -> f32 {
    return bitcast<f32>(reordered(order));
}

// The magnitude in that order.
fn magnitude(v: f32) -> i32 {
    return bitcast<i32>(v) & 0x7fffffff;
}

// The code of v. The code of NaN is arbitrary: its row's scale is NaN too.
fn code_of(v: f32, max_code: f32) -> f32 {
    return clamp(round(v), -max_code - 1.0, max_code);
}

// The codes of four.
fn codes_of(v: vec4<f32>, max_code: f32) -> vec4<f32> {
    return clamp(round(v), vec4<f32>(-max_code - 1.0), vec4<f32>(max_code));
}

// The largest magnitude of four, as an integer in the order of floats.
fn largest(v: vec4<f32>) -> i32 {
    let size = bitcast<vec4<i32>>(v) & vec4<i32>(0x7fffffff);
    return max(max(size.x, size.y), max(size.z, size.w));
}

// Four codes as a word.
fn word_of(code: vec4<f32>) -> u32 {
    let byte = (bitcast<vec4<u32>>(vec4<i32>(code)) & vec4<u32>(0xffu)) << vec4<u32>(0u, 8u, 16u, 24u);
    return byte.x | byte.y | byte.z | byte.w;
}

// v · σ(v).
fn silu(v: vec4<f32>) -> vec4<f32> {
    return v / (1.0 + exp(-v));
}

// max(v, 0)². Bits below those of −infinity are of negative numbers, those behind are NaN's.
fn relu_squared(v: vec4<f32>) -> vec4<f32> {
    let is_negative = bitcast<vec4<u32>>(v) - vec4<u32>(0x80000000u) <= vec4<u32>(0x7f800000u);
    return select(v * v, vec4<f32>(), is_negative);
}
