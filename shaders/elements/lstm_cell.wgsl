// c' = σ(f) · c + σ(i) · tanh(g), h = σ(o) · tanh(c') (ops/lstm_cell.rs). Grid: one thread per element of h.
#import step
#import bounds

struct Params {
    counted_by: u32,
    rows: u32,
    width: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> gates: array<f32>; // [rows, 4 · width]: i, f, g, o
#bind var<storage, read> c: array<f32>; // [rows, width]
#bind var<storage, read_write> h: array<f32>; // [rows, width]
#bind var<storage, read_write> next: array<f32>; // [rows, width]

// e^88 is still finite.
fn sigmoid(v: f32) -> f32 {
    return 1.0 / (1.0 + exp_of(bounded(-v, 88.0)));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x / params.width;
    if row >= counted(params.counted_by, params.rows) { return; }
    let i = id.x % params.width;
    let base = 4u * row * params.width + i;
    let kept = sigmoid(gates[base + params.width]) * c[id.x];
    let cell = kept + sigmoid(gates[base]) * tanh_of(gates[base + 2u * params.width]);
    h[id.x] = sigmoid(gates[base + 3u * params.width]) * tanh_of(cell);
    next[id.x] = cell;
}
