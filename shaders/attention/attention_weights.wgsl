// Softmax of q · kᵀ · scale for one query row per workgroup, the mean over its heads (ops/attention_weights.rs): keys are
// spread over the threads, each of which adds up its own. Grid: x = rows.
#import reduce
#import attention

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, keys]

override HEAD: u32 = 256u; // d, or more

var<workgroup> query: array<f32, HEAD>;

// The query's score with a key.
fn score(key: u32, kv: u32) -> f32 {
    let base = key_at(key, kv);
    var sum = 0.0;
    for (var i = 0u; i + 1u < params.d; i += 2u) {
        sum += dot(vec2<f32>(query[i], query[i + 1u]), k_pair(base + i));
    }
#ifdef ODD
    if (params.d & 1u) == 1u { sum += query[params.d - 1u] * k_one(base + params.d - 1u); }
#endif
    return sum * params.scale * k_scale(key, kv);
}

fn run(lane: Lane, group: vec3<u32>) {
    let row = group.x;
    let first = span(row).x;
    let n = span(row).y;
    let out = row * params.n_keys;
    for (var key = lane.id; key < params.n_keys; key += WG) { y[out + key] = 0.0; }
    for (var head = 0u; head < params.heads; head++) {
        workgroupBarrier();
        for (var i = lane.id; i < params.d; i += WG) { query[i] = q[query_at(row, head) + i]; }
        workgroupBarrier();
        let kv = head / params.group;
        var max_score = MIN_SCORE;
        for (var key = lane.id; key < n; key += WG) { max_score = max(max_score, score(first + key, kv)); }
        max_score = of_order(workgroup_max(lane, order_of(max_score)));
        var total = 0.0;
        for (var key = lane.id; key < n; key += WG) { total += exp_of(score(first + key, kv) - max_score); }
        let share = 1.0 / (workgroup_sum(lane, total) * f32(params.heads));
        for (var key = lane.id; key < n; key += WG) {
            y[out + key] += exp(score(first + key, kv) - max_score) * share;
        }
    }
}
