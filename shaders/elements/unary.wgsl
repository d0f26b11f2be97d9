// y = f(x) element by element (ops/unary.rs). Grid: one thread per element.
#import step
#import bounds

struct Params {
    counted_by: u32,
    rows: u32,
    per_row: u32, // elements of a leading row
    factor: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<f32>; // [rows, per_row]
#bind var<storage, read_write> y: array<f32>; // [rows, per_row]

#ifdef GELU_ERF
// erf to about 1e-7: its Maclaurin series where that converges fast, else 1 − e^(−x²) · p(1/(1 + x/2)), with the
// coefficients of the Chebyshev fit for erfc (Press et al., Numerical Recipes, section 6.2).
fn erf(v: f32) -> f32 {
    let x = abs(v);
    if x < 1.0 {
        let s = v * v;
        var term = v;
        var sum = v;
        for (var n = 1; n < 11; n++) {
            term *= -s / f32(n);
            sum += term / f32(2 * n + 1);
        }
        return sum * 1.1283791670955126;
    }
    let t = 1.0 / (1.0 + 0.5 * x);
    let p = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    let erfc = t * exp(-x * x + p);
    return sign(v) * (1.0 - erfc);
}
#endif

fn f(v: f32) -> f32 {
#ifdef GELU_ERF
    return 0.5 * v * (1.0 + erf(v * 0.7071067811865476));
#endif
#ifdef GELU_TANH
    let inner = 0.7978845608028654 * (v + 0.044715 * v * v * v);
    return 0.5 * v * (1.0 + tanh_of(inner));
#endif
#ifdef RELU
    return at_least(v, 0.0);
#endif
#ifdef TANH
    return tanh_of(v);
#endif
#ifdef SCALE
    return v * params.factor;
#endif
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= counted(params.counted_by, params.rows) * params.per_row { return; }
    y[id.x] = f(x[id.x]);
}
