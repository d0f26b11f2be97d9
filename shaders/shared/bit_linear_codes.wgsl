// Norms and absmax codes of four elements, as ops/norm_quantise.rs defines them (ops/bit_linear.rs).
#import bit_linear

fn root_mean_square(squares: f32, floor: f32, eps: f32) -> f32 {
    return sqrt(at_least(squares / f32(params.width), floor) + eps);
}

#ifdef PRE_NORM
// The input of the pre-norm.
fn front(v: vec4<f32>) -> vec4<f32> {
    return bounded4(v, params.pre_norm_in_bound);
}

// Elements 4i.. of x under it.
fn pre_normed(v: vec4<f32>, i: u32, pre_norm_rms: f32) -> vec4<f32> {
    return pre_norm_weight(i) * bounded4(front(v) / pre_norm_rms, params.pre_norm_out_bound);
}
#endif

// The input of the norm: elements 4i.. of x, or of the pre-normed x.
fn input(v: vec4<f32>, i: u32, pre_norm_rms: f32) -> vec4<f32> {
#ifdef PRE_NORM
    return bounded4(pre_normed(v, i, pre_norm_rms), params.in_bound);
#else
    return bounded4(v, params.in_bound);
#endif
}

// Those under the norm, before its weights.
fn scaled(v: vec4<f32>, rms: f32) -> vec4<f32> {
    return bounded4(v / rms, params.out_bound);
}

fn weighted(v: vec4<f32>, norm: vec4<f32>) -> vec4<f32> {
    return bounded4(norm * v, params.act_bound);
}
