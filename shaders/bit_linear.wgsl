// Norm, absmax codes and ternary product in one launch, for few rows (ops/bit_linear.rs): every workgroup makes the
// codes that it needs, in workgroup memory. A workgroup is GROUPS tiles of 128 outputs, of LANES lanes with QUADS times 4
// outputs each, times SPLIT shares of the columns.
// Grid: x = groups of tiles, y = rows (by SWIGLU: rows · slots).
#import stack
#import ternary_few

struct Params {
    width: u32,
    slots: u32, // k + 1 with experts, else 1
    n_experts: u32,
    out_width: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
    pre_eps: f32,
    pre_floor: f32,
    pre_in_bound: f32,
    pre_out_bound: f32,
    mix_bound: f32,
}
@group(0) @binding(1) var<uniform> params: Params;
#bind var<storage, read> x: array<vec4<f32>>; // [rows, width / 4], or [rows, slots, width / 4] with COMBINE
#bind var<storage, read> norms: array<vec4<f32>>; // [matrices, width / 4]
#bind var<storage, read> weights: array<vec4<u32>>; // a stack: header, table, words
#ifdef PRE
#bind var<storage, read> pre: array<vec4<f32>>; // [width / 4]
#endif
#ifdef SWIGLU
#bind var<storage, read> top: array<u32>; // [rows, k]
#endif
#ifdef COMBINE
#bind var<storage, read> top: array<u32>; // [rows, k]
#bind var<storage, read> mix: array<f32>; // [rows, k]
#endif
#ifdef RESIDUAL
#bind var<storage, read> residual: array<f32>; // [rows, out_width]
#endif
#bind var<storage, read_write> y: array<f32>; // [rows, out_width], or [rows, slots, out_width] with SWIGLU

override SPLIT: u32 = 4u;
override GROUPS: u32 = 1u;
override TERMS: u32 = 3u; // products that meet in an output
override UNITS: u32 = 128u; // vec4s of codes of a term
override CODES: u32 = 640u; // TERMS · UNITS, at most 640
override THREADS: u32 = 256u; // LANES · SPLIT · GROUPS, at most 256
override SHARES: u32 = 256u; // SPLIT · GROUPS · TILE_LANES, at most 256
const FEW: u32 = 8u;

var<workgroup> codes: array<vec4<u32>, CODES>;
var<workgroup> code_meta: array<vec2<f32>, TERMS>;
var<workgroup> shares: array<vec4<i32>, SHARES>;
var<workgroup> partial: array<f32, THREADS>;
var<workgroup> few: array<f32, FEW>;

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
#else
fn expert_of(row: u32, slot: u32, k: u32) -> u32 {
    if slot < k { return top[row * k + slot]; }
    return params.n_experts;
}
#endif

fn sum_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var sum = 0.0;
        for (var i = id; i < THREADS; i += FEW) { sum += partial[i]; }
        few[id] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < FEW; i++) { sum += few[i]; }
    return sum;
}

fn max_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var top = partial[id];
        for (var i = id; i < THREADS; i += FEW) { top = max(top, partial[i]); }
        few[id] = top;
    }
    workgroupBarrier();
    var top = few[0];
    for (var i = 1u; i < FEW; i++) { top = max(top, few[i]); }
    return top;
}

fn bounded(v: vec4<f32>, bound: f32) -> vec4<f32> {
    return clamp(v, vec4<f32>(-bound), vec4<f32>(bound));
}

// What the norm of a term reads: x, or x under the norm in front.
fn input(at: u32, i: u32, pre_rms: f32) -> vec4<f32> {
    var v = x[at + i];
#ifdef PRE
    v = pre[i] * bounded(bounded(v, params.pre_in_bound) / pre_rms, params.pre_out_bound);
#endif
    return bounded(v, params.in_bound);
}

// Root mean square of x in front of the first norm.
fn pre_rms_of(id: u32, at: u32) -> f32 {
#ifdef PRE
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = bounded(x[at + i], params.pre_in_bound);
        squares += dot(v, v);
    }
    return sqrt(max(sum_all(id, squares) / f32(params.width), params.pre_floor) + params.pre_eps);
#else
    return 1.0;
#endif
}

fn rms_of(id: u32, at: u32, pre_rms: f32) -> f32 {
    var squares = 0.0;
    for (var i = id; i < params.width / 4u; i += THREADS) {
        let v = input(at, i, pre_rms);
        squares += dot(v, v);
    }
    return sqrt(max(sum_all(id, squares) / f32(params.width), params.rms_floor) + params.eps);
}

// Makes the codes of a term, as ops/norm_quantise.rs defines them.
fn make_codes(id: u32, term: u32, at: u32, norm: u32, pre_rms: f32, rms: f32) {
    let quarter = params.width / 4u;
    var most = params.act_floor;
    for (var i = id; i < quarter; i += THREADS) {
        let v = norms[norm + i] * bounded(input(at, i, pre_rms) / rms, params.out_bound);
        let size = abs(bounded(v, params.act_bound));
        most = max(most, max(max(size.x, size.y), max(size.z, size.w)));
    }
    let k = params.max_code / max_all(id, most);
    var sum = 0.0;
    for (var unit = id; unit < UNITS; unit += THREADS) {
        var words = vec4<u32>();
        for (var c = 0u; c < 4u; c++) {
            let i = 4u * unit + c;
            if i < quarter {
                let v = norms[norm + i] * bounded(input(at, i, pre_rms) / rms, params.out_bound);
                let code = clamp(round(bounded(v, params.act_bound) * k), vec4<f32>(-params.max_code - 1.0),
                    vec4<f32>(params.max_code));
                sum += dot(code, vec4<f32>(1.0));
                let byte = (bitcast<vec4<u32>>(vec4<i32>(code)) & vec4<u32>(0xffu)) << vec4<u32>(0u, 8u, 16u, 24u);
                words[c] = byte.x | byte.y | byte.z | byte.w;
            }
        }
        codes[term * UNITS + unit] = words;
    }
    let total = sum_all(id, sum);
    if id == 0u { code_meta[term] = vec2<f32>(1.0 / k, total); }
}

// Adds the shares of the columns; share 0 gets the sums.
fn gather(mine: array<vec4<i32>, QUADS>, lane: u32, share: u32, g: u32) -> array<vec4<i32>, QUADS> {
    var sum = mine;
    if SPLIT > 1u {
        workgroupBarrier();
        for (var q = 0u; q < QUADS; q++) { shares[((g * SPLIT + share) * QUADS + q) * LANES + lane] = sum[q]; }
        workgroupBarrier();
        for (var s = 1u; s < SPLIT; s++) {
            let other = (share + s) % SPLIT;
            for (var q = 0u; q < QUADS; q++) { sum[q] += shares[((g * SPLIT + other) * QUADS + q) * LANES + lane]; }
        }
    }
    return sum;
}

// The matrix of a term; `first` is the first matrix of the workgroup.
fn matrix_of(row: u32, first: u32, t: u32) -> u32 {
#ifdef COMBINE
    return expert_of(row, t, params.slots - 1u);
#else
    return first + t;
#endif
}

// The codes of all terms.
fn make_all(id: u32, row: u32, first: u32) {
    let quarter = params.width / 4u;
    var at = row * quarter;
    let pre_rms = pre_rms_of(id, at);
#ifdef COMBINE
    for (var t = 0u; t < TERMS; t++) {
        at = (row * TERMS + t) * quarter;
        make_codes(id, t, at, matrix_of(row, first, t) * quarter, pre_rms, rms_of(id, at, pre_rms));
    }
#else
    let rms = rms_of(id, at, pre_rms);
    for (var t = 0u; t < TERMS; t++) {
        make_codes(id, t, at, matrix_of(row, first, t) * quarter, pre_rms, rms);
    }
#endif
    workgroupBarrier();
}

// An output with a further term.
fn meet(before: vec4<f32>, v: vec4<f32>, row: u32, t: u32) -> vec4<f32> {
#ifdef SWIGLU
    if t > 0u { return bounded(before * v, 1000.0); }
    let g = bounded(v, 20.0);
    return g / (1.0 + exp(-g));
#else
#ifdef COMBINE
    var factor = 1.0;
    if t + 1u < TERMS { factor = mix[row * (TERMS - 1u) + t]; }
    return before + factor * v;
#else
    return v;
#endif
#endif
}

// Writes four outputs, `in_part` the first one's number in its matrix of `rows` outputs.
fn write4(v: vec4<f32>, in_part: u32, rows: u32, out: u32) {
#ifdef COMBINE
    let last = bounded(v, params.mix_bound);
#else
    let last = v;
#endif
    for (var i = 0u; i < 4u; i++) {
        if in_part + i < rows {
#ifdef RESIDUAL
            y[out + i] = last[i] + residual[out + i];
#else
            y[out + i] = last[i];
#endif
        }
    }
}

@compute @workgroup_size(LANES, SPLIT, GROUPS)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
) {
#ifdef PLAIN
    let row = group.y;
    let place = find_group(group.x);
    let first = place.part;
#else
    let place = Tile(0u, group.x * GROUPS, 0u);
#ifdef SWIGLU
    let row = group.y / params.slots;
    let first = expert_of(row, group.y % params.slots, params.slots - 1u) * TERMS;
#else
    let row = group.y;
    let first = 0u;
#endif
#endif
    make_all(id, row, first);
    var result = array<vec4<f32>, QUADS>();
    var rows = 0u;
    for (var t = 0u; t < TERMS; t++) {
        let part = part_at(matrix_of(row, first, t));
        rows = part.rows;
        // Tiles beyond the last read the last again and write nothing.
        let mine = tile_sums(part, min(place.tile + local.z, part.tiles - 1u), local.x, local.y, t * UNITS);
        let sum = gather(mine, local.x, local.y, local.z);
        let m = code_meta[t];
        for (var q = 0u; q < QUADS; q++) {
            let v = vec4<f32>(exact_sums(sum[q], i32(m.y), part.bits)) * (part.scale * m.x);
            result[q] = meet(result[q], v, row, t);
        }
    }
    if local.y != 0u { return; }
    for (var q = 0u; q < QUADS; q++) {
        let in_part = (((place.tile + local.z) * LANES + local.x) * QUADS + q) * 4u;
        write4(result[q], in_part, rows, group.y * params.out_width + place.out + in_part);
    }
}
