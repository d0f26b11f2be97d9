// act(gate) · up of four elements (ops/swiglu.rs). Imported where `params` with the activation and its bounds is declared.
#import bounds

fn gated(gate: vec4<f32>, up: vec4<f32>) -> vec4<f32> {
    let g = bounded4(gate, params.gate_bound);
    var v = silu(g);
    if params.relu2 != 0u { v = relu_squared(g); }
    return bounded4(v * up, params.product_bound);
}
