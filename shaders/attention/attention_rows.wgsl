// softmax(q · kᵀ · scale) · v for one query row and head per workgroup (ops/attention.rs): keys in chunks of 64, one per
// thread, with a running maximum. Grid: x = heads, y = rows, z = slices of 256 outputs.
// Source: Milakov & Gimelshein 2018.
#import reduce
#import values

override HEAD: u32 = 256u; // d, or more
const SLICE: u32 = 256u;
const MINE: u32 = SLICE / WG; // outputs of a thread

#ifdef CACHED
#bind var<storage, read> rows: array<vec4<u32>>; // [rows]: token, pos, seq_base, seq_len
#endif
#ifdef MASK
#bind var<storage, read> mask: array<f32>; // [rows, mask_width], added to scores
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, heads · d]

var<workgroup> query: array<f32, HEAD>;
var<workgroup> weights: array<f32, WG>;

fn run(lane: Lane, group: vec3<u32>) {
    let head = group.x;
    let row = group.y;
    let d = params.d;
    let kv = head / params.group;
    let first = span(row).x;
    let n = span(row).y;
    let column = group.z * SLICE + lane.id; // the first of this thread's outputs
    for (var i = lane.id; i < d; i += WG) { query[i] = q[query_at(row, head) + i]; }
    workgroupBarrier();

    var out = array<f32, MINE>();
    var max_score = MIN_SCORE;
    var total = 0.0;
    for (var chunk = 0u; chunk < n; chunk += WG) {
        let key = chunk + lane.id;
        var score = MIN_SCORE;
        if key < n {
            let base = key_at(first + key, kv);
            var sum = 0.0;
            for (var i = 0u; i + 1u < d; i += 2u) {
                sum += dot(vec2<f32>(query[i], query[i + 1u]), k_pair(base + i));
            }
#ifdef ODD
            if (d & 1u) == 1u { sum += query[d - 1u] * k_one(base + d - 1u); }
#endif
            score = sum * params.scale * k_scale(first + key, kv);
#ifdef MASK
            if key < params.mask_width { score += mask[row * params.mask_width + key]; }
#endif
        }
        let new_max = max(max_score, of_order(workgroup_max(lane, order_of(score))));
        let weight = select(0.0, exp(score - new_max), key < n);
        let shrink = exp(max_score - new_max);
        max_score = new_max;
        weights[lane.id] = 0.0;
        if key < n { weights[lane.id] = weight * v_scale(first + key, kv); }
        // The sum's barriers also make the weights visible.
        total = total * shrink + workgroup_sum(lane, weight);
        let here = min(WG, n - chunk);
        for (var m = 0u; m < MINE; m++) {
            let i = column + m * WG;
            if i < d {
                var sum = out[m] * shrink;
                for (var j = 0u; j < here; j++) {
                    sum += weights[j] * v_one(value_at(first + chunk + j, kv) + i);
                }
                out[m] = sum;
            }
        }
    }
    for (var m = 0u; m < MINE; m++) {
        let i = column + m * WG;
        if i < d { y[(row * params.heads + head) * d + i] = out[m] / total; }
    }
}
