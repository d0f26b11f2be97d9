// softmax(q · kᵀ · scale) · v over the KV cache for few rows, where lanes pass words on and a head has 64 columns
// (ops/attention.rs). A lane takes a key at a time, so that the 8 of a team wait for memory together, and keeps sums of
// all columns; at the end each gathers 8 columns of its team. Grid: x = kv heads, y = rows, z = pieces of a row's keys.
// Workgroup: TEAMS teams, which share out the keys. Source: Milakov & Gimelshein 2018; Dao et al. 2023 (Flash-Decoding).
#import lanes
#import cached

override GROUP: u32 = 2u; // query heads of a kv head, at most 4: one component of a vec4 each
const TEAMS: u32 = 4u;
const EIGHTS: u32 = 8u; // of a head's columns
const RUN: u32 = 8u; // times 8 keys of a team between two updates of the running maximum
const MOST: u32 = 64u; // 4 · 2 · EIGHTS

var<workgroup> sums: array<vec4<f32>, 256>; // TEAMS · GROUP · 2 · EIGHTS
var<workgroup> tops: array<vec4<f32>, TEAMS>;
var<workgroup> totals: array<vec4<f32>, TEAMS>;
var<private> query: array<vec4<f32>, MOST>; // of all heads
var<private> scores: array<vec4<f32>, RUN>; // of this lane's keys
var<private> low: array<vec4<f32>, 32>; // sums of the first four of eight columns, by head and eight
var<private> high: array<vec4<f32>, 32>; // and of the others

// q · k of a key for each head.
fn score_of(at: u32) -> vec4<f32> {
    var score = array<vec4<f32>, 4>();
    for (var e = 0u; e < EIGHTS; e++) {
        let x = k_at(at + e);
        for (var h = 0u; h < GROUP; h++) {
            score[h] = fma(query[(h * EIGHTS + e) * 2u], x.a, score[h]);
            score[h] = fma(query[(h * EIGHTS + e) * 2u + 1u], x.b, score[h]);
        }
    }
    var all = vec4<f32>();
    for (var h = 0u; h < GROUP; h++) { all[h] = params.scale * (score[h].x + score[h].y + score[h].z + score[h].w); }
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
            low[h * EIGHTS + e] *= by[h];
            high[h * EIGHTS + e] *= by[h];
        }
    }
}

fn max_of_heads(lane: Lane, v: vec4<f32>) -> vec4<f32> {
    var most = v;
    for (var h = 0u; h < GROUP; h++) { most[h] = max_of_lanes(lane, v[h]); }
    return most;
}

// Adds up what the teams have left, and writes it.
fn write_all(id: u32, group: vec3<u32>, pieces: u32) {
    var all_top = tops[0];
    for (var t = 1u; t < TEAMS; t++) { all_top = max(all_top, tops[t]); }
    var all = vec4<f32>();
    for (var t = 0u; t < TEAMS; t++) { all += exp(tops[t] - all_top) * totals[t]; }
    let fours = GROUP * EIGHTS * 2u;
    for (var o = id; o < fours; o += 8u * TEAMS) {
        let h = o / (EIGHTS * 2u);
        var value = vec4<f32>();
        for (var t = 0u; t < TEAMS; t++) { value += exp(tops[t][h] - all_top[h]) * sums[t * fours + o]; }
        put(group.y, group.x * GROUP + h, group.z, pieces, o % (EIGHTS * 2u), value, all_top[h], all[h]);
    }
}

@compute @workgroup_size(32)
fn main(lane: Lane, @builtin(workgroup_id) group: vec3<u32>) {
    let piece = piece_at(group.y, group.z);
    if group.z >= piece.pieces { return; }
    let end = piece.end;
    let width = params.heads / GROUP * EIGHTS; // eights of a row of the cache
    let nth = lane.in_subgroup & 7u;
    let team = lane.id / 8u;
    let q0 = (group.y * params.heads + group.x * GROUP) * EIGHTS * 2u;
    for (var i = 0u; i < GROUP * EIGHTS * 2u; i++) { query[i] = q[q0 + i]; }

    var top = vec4<f32>(LEAST);
    var total = vec4<f32>();
    for (var base = piece.begin; base < end; base += TEAMS * RUN * 8u) {
        let start = base + team * RUN * 8u;
        let steps = (min(start + RUN * 8u, max(start, end)) - start + 7u) / 8u;
        var mine = top;
        for (var s = 0u; s < steps; s++) {
            let key = start + s * 8u + nth;
            let score = select(vec4<f32>(LEAST), score_of(min(key, end - 1u) * width + group.x * EIGHTS),
                vec4<bool>(key < end));
            scores[s] = score;
            mine = max(mine, score);
        }
        let new_top = max_of_heads(lane, mine);
        let shrink = exp(top - new_top);
        top = new_top;
        total *= shrink;
        shrink_sums(shrink);
        for (var s = 0u; s < steps; s++) {
            let key = start + s * 8u + nth;
            let weight = select(vec4<f32>(), exp(scores[s] - top), vec4<bool>(key < end));
            total += weight;
            add_values(weight, min(key, end - 1u) * width + group.x * EIGHTS);
        }
    }
    fold(lane, 4u);
    fold(lane, 2u);
    fold(lane, 1u);
    for (var h = 0u; h < GROUP; h++) {
        let at = ((team * GROUP + h) * EIGHTS + nth) * 2u;
        sums[at] = low[h * EIGHTS];
        sums[at + 1u] = high[h * EIGHTS];
        total[h] = sum_of_lanes(lane, total[h]);
    }
    if nth == 0u {
        tops[team] = top;
        totals[team] = total;
    }
    workgroupBarrier();
    write_all(lane.id, group, piece.pieces);
}
