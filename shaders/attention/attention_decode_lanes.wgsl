// softmax(q · kᵀ · scale) · v over the KV cache for few rows, for software subgroups and heads of 64 columns
// (ops/attention.rs). A lane takes a key at a time, so that 8 lanes wait for memory together, and keeps sums of all
// columns; at the end each gathers 8 columns of all lanes. With ROPE the row is new, as attention_decode says.
// Grid: x = kv heads, y = rows, z = chunks of a row's keys.
// Workgroup: 8 lanes, which need no barrier. Source: Milakov & Gimelshein 2018; Dao et al. 2023 (Flash-Decoding).
#import subgroup_lanes
#import kv_chunks
#import vectors
#ifdef ROPE
#import new_row
#endif

override GROUP: u32 = 2u; // query heads of a kv head, at most 4: one component of a vec4 each
const EIGHTS: u32 = 8u; // of a head's columns
const RUN: u32 = 8u; // times 8 keys between two updates of the running maximum
const MAX_QUERY: u32 = 64u; // 4 · 2 · EIGHTS

var<private> query: array<vec4<f32>, MAX_QUERY>; // of all heads
var<private> scores: array<vec4<f32>, RUN>; // of this lane's keys
var<private> low: array<vec4<f32>, 32>; // sums of the first four of eight columns, by head and eight
var<private> high: array<vec4<f32>, 32>; // and of the others

fn sum_of(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

// q · k of a key for each head, times a scale.
fn score_of(at: u32, scale: f32) -> vec4<f32> {
    var score = array<vec4<f32>, 4>();
    for (var e = 0u; e < EIGHTS; e++) {
        let x = k_at(at + e);
        for (var h = 0u; h < GROUP; h++) {
            score[h] = fma(query[(h * EIGHTS + e) * 2u], x.a, score[h]);
            score[h] = fma(query[(h * EIGHTS + e) * 2u + 1u], x.b, score[h]);
        }
    }
    // All four at once, zeros beyond GROUP: FXC writes no component at a computed place.
    let all = vec4<f32>(sum_of(score[0]), sum_of(score[1]), sum_of(score[2]), sum_of(score[3])) * scale;
    return all;
}

// Adds a key's values to the sums of each head.
fn add_values(weight: vec4<f32>, at: u32) {
    for (var e = 0u; e < EIGHTS; e++) {
        let x = v_at(at + e);
        for (var h = 0u; h < GROUP; h++) {
            let w = vec4<f32>(weight[h]);
            low[h * EIGHTS + e] = fma(w, x.a, low[h * EIGHTS + e]);
            high[h * EIGHTS + e] = fma(w, x.b, high[h * EIGHTS + e]);
        }
    }
}

fn swap(v: vec4<f32>, partner: u32) -> vec4<f32> {
    return vec4<f32>(subgroupShuffle(v.x, partner), subgroupShuffle(v.y, partner), subgroupShuffle(v.z, partner),
        subgroupShuffle(v.w, partner));
}

// Keeps the half of the first 2 · `half` eights that bit `half` of the lane's number asks for, summed over two lanes.
fn fold(lane: Lane, half: u32) {
    let upper = vec4<bool>((lane.in_subgroup & half) != 0u);
    let partner = lane.in_subgroup ^ half;
    for (var h = 0u; h < GROUP; h++) {
        for (var e = 0u; e < half; e++) {
            let i = h * EIGHTS + e;
            low[i] = select(low[i], low[i + half], upper) + swap(select(low[i + half], low[i], upper), partner);
            high[i] = select(high[i], high[i + half], upper) + swap(select(high[i + half], high[i], upper), partner);
        }
    }
}

fn shrink_sums(by: vec4<f32>) {
    for (var h = 0u; h < GROUP; h++) {
        for (var e = 0u; e < EIGHTS; e++) {
            low[h * EIGHTS + e] *= component(by, h);
            high[h * EIGHTS + e] *= component(by, h);
        }
    }
}

fn max_of_heads(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    var maxima = v;
    maxima.x = max_of_lanes(lane, v.x);
    if GROUP > 1u { maxima.y = max_of_lanes(lane, v.y); }
    if GROUP > 2u { maxima.z = max_of_lanes(lane, v.z); }
    if GROUP > 3u { maxima.w = max_of_lanes(lane, v.w); }
    return maxima;
}

#ifdef ROPE
fn rms_of(lane: Lane, first: u32) -> f32 {
#ifdef NORM
    return head_rms(sum_of_lanes(lane, squares_of(first, lane.in_subgroup & 7u)));
#else
    return 1.0;
#endif
}

// Holds the turned query of each head, of which every lane makes an eighth, and with `is_last` leaves the new key and value in
// the cache.
fn take_new(lane: Lane, kv: u32, is_last: bool) {
    let begin = lane.in_subgroup & ~7u;
    let nth = lane.in_subgroup & 7u;
    let at = heads_at(kv);
    let pos = rows[0].y;
    for (var h = 0u; h < GROUP; h++) {
        let first = at.x + h * EIGHTS * 2u;
        let mine = turned_eight(first, nth, pos, 0u, rms_of(lane, first));
        for (var e = 0u; e < EIGHTS; e++) {
            query[(h * EIGHTS + e) * 2u] = swap(mine.a, begin + e);
            query[(h * EIGHTS + e) * 2u + 1u] = swap(mine.b, begin + e);
        }
    }
    if is_last {
        store_key(new_place(kv) + nth, turned_eight(at.y, nth, pos, params.d / 4u, rms_of(lane, at.y)));
        store_value(new_place(kv) + nth, Eight(qkv[at.z + 2u * nth], qkv[at.z + 2u * nth + 1u]));
    }
    storageBarrier();
}
#else
// Holds the query of each head, of which every lane loads an eighth.
fn take_query(lane: Lane, first: u32) {
    let begin = lane.in_subgroup & ~7u;
    for (var h = 0u; h < GROUP; h++) {
        let at = first + h * EIGHTS * 2u + (lane.in_subgroup & 7u);
        let left = q[at];
        let right = q[at + 8u];
        for (var i = 0u; i < 8u; i++) {
            query[h * EIGHTS * 2u + i] = swap(left, begin + i);
            query[h * EIGHTS * 2u + 8u + i] = swap(right, begin + i);
        }
    }
}
#endif

@compute @workgroup_size(8)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let lane = Lane(id, in_subgroup);
    let chunk = chunk_at(group.y, group.z);
    if group.z >= chunk.chunks { return; }
    let end = chunk.end;
    let width = params.heads / GROUP * EIGHTS; // eights of a row of the cache
    let nth = lane.in_subgroup & 7u;
#ifdef ROPE
    take_new(lane, group.x, chunk.is_last);
#else
    take_query(lane, (group.y * params.heads + group.x * GROUP) * EIGHTS * 2u);
#endif

    var max_score = vec4<f32>(MIN_SCORE);
    var total = vec4<f32>();
    for (var start = chunk.begin; start < end; start += RUN * 8u) {
        let steps = (min(start + RUN * 8u, end) - start + 7u) / 8u;
        var mine = max_score;
        for (var s = 0u; s < steps; s++) {
            let key = start + s * 8u + nth;
            let place = min(key, end - 1u);
            let scale = params.scale * k_scale(place, group.x);
            let score = select(vec4<f32>(MIN_SCORE), score_of(place * width + group.x * EIGHTS, scale), vec4<bool>(key < end));
            scores[s] = score;
            mine = max(mine, score);
        }
        let new_max = max_of_heads(lane, mine);
        let shrink = exp(max_score - new_max);
        max_score = new_max;
        total *= shrink;
        shrink_sums(shrink);
        for (var s = 0u; s < steps; s++) {
            let key = start + s * 8u + nth;
            let weight = select(vec4<f32>(), exp(scores[s] - max_score), vec4<bool>(key < end));
            total += weight;
            let place = min(key, end - 1u);
            add_values(weight * v_scale(place, group.x), place * width + group.x * EIGHTS);
        }
    }
    fold(lane, 4u);
    fold(lane, 2u);
    fold(lane, 1u);
    for (var h = 0u; h < GROUP; h++) {
        let sum = sum_of_lanes(lane, component(total, h));
        let i = h * EIGHTS;
        store_output(group.y, group.x * GROUP + h, group.z, chunk.chunks, 2u * nth, low[i], component(max_score, h), sum);
        store_output(group.y, group.x * GROUP + h, group.z, chunk.chunks, 2u * nth + 1u, high[i], component(max_score, h), sum);
    }
}
