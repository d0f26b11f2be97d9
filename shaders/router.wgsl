// The k most probable experts of each row, renormalised (ops/router.rs). Grid: a thread a row.
#import step

struct Params {
    lead: u32,
    rows: u32,
    experts: u32,
    k: u32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> logits: array<f32>; // [rows, experts]
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#bind var<storage, read_write> top: array<u32>; // [rows, k]
#bind var<storage, read_write> weights: array<f32>; // [rows, k]
#bind var<storage, read_write> log: array<u32>; // [capacity, k]

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    if row >= led(params.lead, params.rows) { return; }
    let base = row * params.experts;
    var most = logits[base];
    for (var e = 1u; e < params.experts; e++) { most = max(most, logits[base + e]); }
    var total = 0.0;
    for (var e = 0u; e < params.experts; e++) { total += exp(logits[base + e] - most); }

    let at = (rows[row].y + rows[row].z) * params.k;
    var taken = 0u; // a bit for each expert
    var chosen = 0.0;
    for (var i = 0u; i < params.k; i++) {
        var best = 0u;
        var best_logit = -3.4e38;
        for (var e = 0u; e < params.experts; e++) {
            let free = (taken >> e & 1u) == 0u;
            if free && (logits[base + e] > best_logit || best_logit == -3.4e38) {
                best = e;
                best_logit = logits[base + e];
            }
        }
        taken |= 1u << best;
        let p = exp(best_logit - most) / total;
        chosen += p;
        top[row * params.k + i] = best;
        weights[row * params.k + i] = p;
        log[at + i] = best;
    }
    for (var i = 0u; i < params.k; i++) { weights[row * params.k + i] /= chosen + 1e-8; }
}
