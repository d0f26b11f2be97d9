// Codes × ternary matrices for many rows with software subgroups (ops/ternary_matmul.rs): a lane keeps 4 outputs of 8
// rows, and loads 4 of 32 neighbouring words of codes of each row.
// Grid: x = blocks of 8 rows, so that the weights stay in the cache for the next one, y = tiles of 128 outputs.
// Workgroup: 32 lanes, which share nothing.
#bind var<storage, read> codes: array<vec4<u32>>; // [rows, sets, set_words / 4]
#import halves
#import subgroup_lanes

var<private> even: array<vec4<u32>, ROWS>; // this lane's codes, every other one, without signs
var<private> odd: array<vec4<u32>, ROWS>;

// 16 columns of 1-bit weights whose bits of even columns begin at `g`, with the codes of `lane`.
fn add_ones(w: vec4<u32>, g: u32, lane: u32) {
    let e0 = spread(w >> vec4<u32>(g));
    let e1 = spread(w >> vec4<u32>(g + 1u));
    let e2 = spread(w >> vec4<u32>(g + 2u));
    let e3 = spread(w >> vec4<u32>(g + 3u));
    let o0 = spread(w >> vec4<u32>(g + 8u));
    let o1 = spread(w >> vec4<u32>(g + 9u));
    let o2 = spread(w >> vec4<u32>(g + 10u));
    let o3 = spread(w >> vec4<u32>(g + 11u));
    for (var r = 0u; r < ROWS; r++) {
        let e = subgroupShuffle(even[r], lane);
        let o = subgroupShuffle(odd[r], lane);
        let a = (e0 & vec4<u32>(e.x)) + (o0 & vec4<u32>(o.x)) + (e1 & vec4<u32>(e.y)) + (o1 & vec4<u32>(o.y));
        let b = (e2 & vec4<u32>(e.z)) + (o2 & vec4<u32>(o.z)) + (e3 & vec4<u32>(e.w)) + (o3 & vec4<u32>(o.w));
        halves[r] += a + b;
    }
}

// 8 columns of 2-bit weights whose bits of even columns begin at `g`, with one half of the codes of `lane`.
fn add_twos(w: vec4<u32>, g: u32, lane: u32, second: bool) {
    let e0 = spread(w >> vec4<u32>(g));
    let e0_twos = spread(w >> vec4<u32>(g + 1u));
    let e1 = spread(w >> vec4<u32>(g + 2u));
    let e1_twos = spread(w >> vec4<u32>(g + 3u));
    let o0 = spread(w >> vec4<u32>(g + 8u));
    let o0_twos = spread(w >> vec4<u32>(g + 9u));
    let o1 = spread(w >> vec4<u32>(g + 10u));
    let o1_twos = spread(w >> vec4<u32>(g + 11u));
    for (var r = 0u; r < ROWS; r++) {
        let e = subgroupShuffle(select(even[r].xy, even[r].zw, second), lane);
        let o = subgroupShuffle(select(odd[r].xy, odd[r].zw, second), lane);
        let ones = (e0 & vec4<u32>(e.x)) + (o0 & vec4<u32>(o.x)) + (e1 & vec4<u32>(e.y)) + (o1 & vec4<u32>(o.y));
        let twos = (e0_twos & vec4<u32>(e.x)) + (o0_twos & vec4<u32>(o.x))
            + (e1_twos & vec4<u32>(e.y)) + (o1_twos & vec4<u32>(o.y));
        halves[r] += ones + 2u * twos;
    }
}

// Loads this lane's codes of all rows: quad `quad` of each.
fn load_codes(codes0: array<u32, ROWS>, quad: u32) {
    for (var r = 0u; r < ROWS; r++) {
        let word = codes[codes0[r] + quad] ^ vec4<u32>(FLIP);
        even[r] = word & vec4<u32>(HALVES);
        odd[r] = (word >> vec4<u32>(8u)) & vec4<u32>(HALVES);
    }
}

@compute @workgroup_size(TILE_LANES)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
    let lane = Lane(id, in_subgroup);
    let block = group.x;
    let first = first_matrix(block);
    if first == NO_ROW { return; }
    let tile = find_tile(first, group.y);
    let part = part_at(first + tile.part);
    let words = row_words(part.bits);
    let weights0 = part.first + tile.tile * words * TILE_LANES + lane.id;
    let vec4s = params.set_words / 4u;
    let mine = lane.in_subgroup & 7u; // lanes behind the last codes hold those again, and are not asked
    var codes0: array<u32, ROWS>;
    for (var r = 0u; r < ROWS; r++) { codes0[r] = set_of(row_at(block, r), tile.part) * vec4s; }
    // Eight lanes hold the codes of 4 words of 1-bit weights, or of 8 of 2-bit weights.
    if part.bits == 1u {
        for (var j0 = 0u; j0 < words; j0 += 4u) {
            load_codes(codes0, min(2u * j0 + mine, vec4s - 1u));
            let end = min(4u, words - j0);
            for (var j = 0u; j < end; j++) {
                let w = weights[weights0 + (j0 + j) * TILE_LANES];
                stored_sum += stored_ones(w);
                add_ones(w, 0u, 2u * j);
                add_ones(w, 4u, 2u * j + 1u);
            }
            if j0 % RUN == RUN - 4u { settle(); }
        }
    } else {
        for (var j0 = 0u; j0 < words; j0 += 8u) {
            load_codes(codes0, min(j0 + mine, vec4s - 1u));
            let end = min(8u, words - j0);
            for (var j = 0u; j < end; j++) {
                let w = weights[weights0 + (j0 + j) * TILE_LANES];
                stored_sum += stored_twos(w);
                add_twos(w, 0u, j, false);
                add_twos(w, 4u, j, true);
            }
            if j0 % RUN == RUN - 8u { settle(); }
        }
    }
    settle();
    let in_part = (tile.tile * TILE_LANES + lane.id) * 4u;
    for (var r = 0u; r < ROWS; r++) { finish(block, r, r, sums[r], tile, part, in_part); }
}
