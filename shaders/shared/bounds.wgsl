// Bounds and maxima that NaN comes through. WGSL's clamp, min and max may drop it, and a compiler may take any float for a
// number, so that only its bits tell.

fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// v within ±bound, which is no NaN. Magnitudes above the bound and up to that of infinity are as far from it as their bits:
// fewer operations than a clamp and a test for NaN, where a clamp is made of several.
fn bounded(v: f32, bound: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let most = bitcast<u32>(bound);
    let is_above = (bits & 0x7fffffffu) - most - 1u < 0x7f800000u - most;
    return select(v, bitcast<f32>((bits & 0x80000000u) | most), is_above);
}

fn bounded4(v: vec4<f32>, bound: f32) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    let most = vec4<u32>(bitcast<u32>(bound));
    let is_above = (bits & vec4<u32>(0x7fffffffu)) - most - vec4<u32>(1u) < vec4<u32>(0x7f800000u) - most;
    return select(v, bitcast<vec4<f32>>((bits & vec4<u32>(0x80000000u)) | most), is_above);
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

// An integer in the order of floats: the larger for the larger, NaN above all.
fn order_of(v: f32) -> i32 {
    let bits = bitcast<i32>(v);
    return select(bits ^ ((bits >> 31u) & 0x7fffffff), 0x7fffffff, is_nan(v));
}

// The float that has this order.
fn of_order(order: i32) -> f32 {
    return bitcast<f32>(order ^ ((order >> 31u) & 0x7fffffff));
}

// The magnitude's place in that order.
fn magnitude(v: f32) -> i32 {
    return bitcast<i32>(v) & 0x7fffffff;
}

// The code of v. That of NaN is any: its row's scale is NaN too.
fn code_of(v: f32, max_code: f32) -> f32 {
    return clamp(round(v), -max_code - 1.0, max_code);
}
