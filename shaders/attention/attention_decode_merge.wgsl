// Adds up the chunks of rows that are more than one (ops/attention.rs). Grid: x = heads, y = rows; a thread has four
// outputs. Source: Dao et al. 2023 (Flash-Decoding).
#import kv_chunks

override THREADS: u32 = 32u; // d / 4, and at least 32

@compute @workgroup_size(THREADS)
fn main(@builtin(local_invocation_id) local: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>) {
    let fours = params.d / 4u;
    let chunks = chunks_of(keys_of(group.y));
    if chunks == 1u || local.x >= fours { return; }
    let first = part_of(group.y, group.x, 0u);
    var max_score = MIN_SCORE;
    for (var i = 0u; i < chunks; i++) { max_score = max(max_score, parts[first + i * (fours + 1u) + fours].x); }
    var sums = vec4<f32>();
    var total = 0.0;
    for (var i = 0u; i < chunks; i++) {
        let at = first + i * (fours + 1u);
        let of_piece = parts[at + fours];
        let weight = exp(of_piece.x - max_score);
        sums += weight * parts[at + local.x];
        total += weight * of_piece.y;
    }
    y[(group.y * params.heads + group.x) * fours + local.x] = sums / total;
}
