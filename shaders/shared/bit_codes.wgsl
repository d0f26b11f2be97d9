// Norms and absmax codes of four elements, as ops/norm_quantise.rs defines them (ops/bit_linear.rs).
#import bit_linear

fn root_mean_square(squares: f32, floor: f32, eps: f32) -> f32 {
    return sqrt(max(squares / f32(params.width), floor) + eps);
}

#ifdef PRE
// What the norm in front reads.
fn front(v: vec4<f32>) -> vec4<f32> {
    return bounded(v, params.pre_in_bound);
}
#endif

// What the norm reads: elements 4i.. of x, or of x under the norm in front.
fn input(v: vec4<f32>, i: u32, pre_rms: f32) -> vec4<f32> {
#ifdef PRE
    return bounded(pre[i] * bounded(front(v) / pre_rms, params.pre_out_bound), params.in_bound);
#else
    return bounded(v, params.in_bound);
#endif
}

// Those under the norm, before its weights.
fn scaled(v: vec4<f32>, rms: f32) -> vec4<f32> {
    return bounded(v / rms, params.out_bound);
}

fn weighted(v: vec4<f32>, norm: vec4<f32>) -> vec4<f32> {
    return bounded(norm * v, params.act_bound);
}

fn largest(v: vec4<f32>) -> f32 {
    let size = abs(v);
    return max(max(size.x, size.y), max(size.z, size.w));
}

fn codes_of(v: vec4<f32>, k: f32) -> vec4<f32> {
    return clamp(round(v * k), vec4<f32>(-params.max_code - 1.0), vec4<f32>(params.max_code));
}

fn word_of(code: vec4<f32>) -> u32 {
    let byte = (bitcast<vec4<u32>>(vec4<i32>(code)) & vec4<u32>(0xffu)) << vec4<u32>(0u, 8u, 16u, 24u);
    return byte.x | byte.y | byte.z | byte.w;
}
