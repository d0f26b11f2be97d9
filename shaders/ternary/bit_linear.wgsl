// Norm, absmax codes and ternary product in one launch, for few rows (ops/bit_linear.rs): every workgroup makes the
// codes that it needs, in workgroup memory. A workgroup is GROUPS tiles of 128 outputs, of LANES lanes with VEC4S times 4
// outputs each, times SPLIT_K shares of the columns.
// Grid: x = groups of tiles, y = rows (by SWIGLU: rows · slots).
#import bit_linear_codes
#import ternary_matvec
#import workgroup_totals
#ifdef ROUTE
#import route_experts
#endif

override SPLIT_K: u32 = 4u;
override GROUPS: u32 = 1u;
override TERMS: u32 = 3u; // products that an output adds up
override UNITS: u32 = 128u; // vec4s of codes of a term
override CODES: u32 = 640u; // TERMS · UNITS, at most 640
override THREADS: u32 = 256u; // LANES · SPLIT_K · GROUPS, at most 256
override SHARES: u32 = 256u; // SPLIT_K · GROUPS · TILE_LANES, at most 256

var<workgroup> codes: array<vec4<u32>, CODES>;
var<workgroup> code_scale_and_sum: array<vec2<f32>, TERMS>;
var<workgroup> shares: array<vec4<i32>, SHARES>;

// Root mean square of x in front of the first norm.
fn pre_norm_rms_of(id: u32, at: u32) -> f32 {
#ifdef PRE_NORM
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = front(x[at + i]);
        squares += dot(v, v);
    }
    return root_mean_square(sum_all(id, squares), params.pre_norm_floor, params.pre_norm_eps);
#else
    return 1.0;
#endif
}

fn rms_of(id: u32, at: u32, pre_norm_rms: f32) -> f32 {
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = input(x[at + i], i, pre_norm_rms);
        squares += dot(v, v);
    }
    return root_mean_square(sum_all(id, squares), params.rms_floor, params.eps);
}

// Four elements under a norm.
fn normed(at: u32, norm: u32, i: u32, pre_norm_rms: f32, rms: f32) -> vec4<f32> {
    return weighted(scaled(input(x[at + i], i, pre_norm_rms), rms), norms[norm + i]);
}

// Their codes; 0 behind the last ones.
fn codes_at(at: u32, norm: u32, i: u32, pre_norm_rms: f32, rms: f32, k: f32) -> vec4<f32> {
    let quarter = params.width / 4u;
    let v = normed(at, norm, min(i, quarter - 1u), pre_norm_rms, rms);
    return select(vec4<f32>(), codes_of(v * k, params.max_code), i < quarter);
}

// Makes the codes of a term.
fn make_codes(id: u32, term: u32, at: u32, norm: u32, pre_norm_rms: f32, rms: f32) {
    var max_order = magnitude(params.act_floor);
    for (var i = id; i < params.width / 4u; i += THREADS) {
        max_order = max(max_order, largest(normed(at, norm, i, pre_norm_rms, rms)));
    }
    let k = params.max_code / max_all(id, of_order(max_order));
    var sum = 0.0;
    for (var unit = id; unit < UNITS; unit += THREADS) {
        let a = codes_at(at, norm, 4u * unit, pre_norm_rms, rms, k);
        let b = codes_at(at, norm, 4u * unit + 1u, pre_norm_rms, rms, k);
        let c = codes_at(at, norm, 4u * unit + 2u, pre_norm_rms, rms, k);
        let d = codes_at(at, norm, 4u * unit + 3u, pre_norm_rms, rms, k);
        sum += dot(a + b + c + d, vec4<f32>(1.0));
        codes[term * UNITS + unit] = vec4<u32>(word_of(a), word_of(b), word_of(c), word_of(d));
    }
    let total = sum_all(id, sum);
    if id == 0u { code_scale_and_sum[term] = vec2<f32>(1.0 / k, total); }
}

#ifdef PLAIN
// Group `g` of the groups of GROUPS tiles of all matrices; a group has tiles of one matrix only.
fn find_group(g: u32) -> Tile {
    var at = Tile(0u, g, 0u);
    var groups = (weights[2].z + GROUPS - 1u) / GROUPS;
    while at.tile >= groups {
        at.tile -= groups;
        at.out += weights[1u + 2u * at.part].z;
        at.part++;
        groups = (weights[2u + 2u * at.part].z + GROUPS - 1u) / GROUPS;
    }
    at.tile *= GROUPS;
    return at;
}
#endif

// Adds the shares of the columns; share 0 gets the sums.
fn gather(mine: array<vec4<i32>, VEC4S>, lane: u32, share: u32, g: u32) -> array<vec4<i32>, VEC4S> {
    var sum = mine;
    if SPLIT_K > 1u {
        workgroupBarrier();
        for (var q = 0u; q < VEC4S; q++) { shares[((g * SPLIT_K + share) * VEC4S + q) * LANES + lane] = sum[q]; }
        workgroupBarrier();
        for (var s = 1u; s < SPLIT_K; s++) {
            let other = (share + s) % SPLIT_K;
            for (var q = 0u; q < VEC4S; q++) { sum[q] += shares[((g * SPLIT_K + other) * VEC4S + q) * LANES + lane]; }
        }
    }
    return sum;
}

// The matrix of a term; `first` is the first matrix of the workgroup.
fn matrix_of(row: u32, first: u32, t: u32) -> u32 {
#ifdef COMBINE
    return expert_of(row, t);
#else
    return first + t;
#endif
}

// The codes of all terms.
fn make_all(id: u32, row: u32, first: u32, pre_norm_rms: f32) {
    let quarter = params.width / 4u;
    var at = row * quarter;
#ifdef COMBINE
    for (var t = 0u; t < TERMS; t++) {
        at = (row * TERMS + t) * quarter;
        make_codes(id, t, at, matrix_of(row, first, t) * quarter, pre_norm_rms, rms_of(id, at, pre_norm_rms));
    }
#else
    let rms = rms_of(id, at, pre_norm_rms);
    for (var t = 0u; t < TERMS; t++) {
        make_codes(id, t, at, matrix_of(row, first, t) * quarter, pre_norm_rms, rms);
    }
#endif
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
#ifdef TABLES
    @builtin(subgroup_invocation_id) in_subgroup: u32,
#endif
) {
#ifdef TABLES
    begin_tables(in_subgroup);
#endif
    let local = vec3<u32>(id % LANES, id / LANES % SPLIT_K, id / (LANES * SPLIT_K));
#ifdef PLAIN
    let row = group.y;
    let place = find_group(group.x);
    let first = place.part;
#else
    let place = Tile(0u, group.x * GROUPS, 0u);
#ifdef SWIGLU
    let row = group.y / params.slots;
#else
    let row = group.y;
    let first = 0u;
#endif
#endif
    let pre_norm_rms = pre_norm_rms_of(id, row * (params.width / 4u));
#ifdef SWIGLU
    let slot = group.y % params.slots;
#ifdef ROUTE
    if slot < params.k {
        find_logits(id, row * (params.width / 4u), pre_norm_rms);
        if group.x == 0u && slot == 0u && id == 0u { choose(row, 0u); }
    }
#endif
    let first = expert_of(row, slot) * TERMS;
#endif
    make_all(id, row, first, pre_norm_rms);
    var result = array<vec4<f32>, VEC4S>();
    var rows = 0u;
    for (var t = 0u; t < TERMS; t++) {
        let part = part_at(matrix_of(row, first, t));
        rows = part.rows;
        // Tiles beyond the last read the last again and write nothing.
        let mine = tile_sums(part, min(place.tile + local.z, part.tiles - 1u), local.x, local.y, t * UNITS);
        let sum = gather(mine, local.x, local.y, local.z);
        let m = code_scale_and_sum[t];
        for (var q = 0u; q < VEC4S; q++) {
            let v = vec4<f32>(exact_sums(sum[q], i32(m.y), part.bits)) * (part.scale * m.x);
            result[q] = accumulate(result[q], v, row, t);
        }
    }
    if local.y != 0u { return; }
    for (var q = 0u; q < VEC4S; q++) {
        let in_part = (((place.tile + local.z) * LANES + local.x) * VEC4S + q) * 4u;
        write4(result[q], in_part, rows, group.y * params.out_width + place.out + in_part);
    }
}
