// The k most probable experts of each row, renormalised (ops/router.rs). Grid: one thread per row.
#import step
#import choose_experts

struct Params {
    counted_by: u32,
    rows: u32,
    experts: u32,
    k: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> logits: array<f32>; // [rows, experts]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read_write> expert_ids: array<u32>; // [rows, k]
#bind var<storage, read_write> expert_weights: array<f32>; // [rows, k]
#bind var<storage, read_write> log: array<u32>; // [capacity, k]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= counted(params.counted_by, params.rows) { return; }
    choose(row, row * params.experts);
}
