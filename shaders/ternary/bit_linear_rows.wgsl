// The second of two launches of a layer of few rows (ops/bit_linear.rs): products with the codes that the first has left,
// so that the rows of a block, which are multiplied by the same matrix, share its words. A workgroup is a tile of 128 outputs.
// Grid: x = tiles, y = blocks of ROWS rows; by SWIGLU y = experts, each with all rows that chose it; by COMBINE 1.
#import bit_linear
#import lookup_tables
// Of each set UNITS vec4s of codes, and one with 1/k and their sum; with COMBINE the products [rows, slots, tiles, 32] behind.
#bind var<storage, read_write> between: array<vec4<u32>>; // [sets, UNITS + 1]

override TERMS: u32 = 3u; // products that an output adds up
override UNITS: u32 = 128u; // vec4s of codes of a set
override FIRST_PRODUCT: u32 = 0u; // the products' first vec4
override TILES: u32 = 1u; // of an output row

#ifdef TWO_PAIRS
const VEC4S: u32 = 2u;
const NUMBERS: u32 = 2u; // of two rows each
#else
const VEC4S: u32 = 4u;
const NUMBERS: u32 = 1u;
#endif
const MAX_ROWS: u32 = 8u;
const ROWS: u32 = 2u * NUMBERS; // of a block

var<private> row_codes: array<u32, ROWS>; // the first vec4 of each row's codes
var<private> row_scale: array<f32, ROWS>;
var<private> row_total: array<i32, ROWS>;
var<private> sums: array<vec4<i32>, VEC4S * ROWS>; // over stored codes

// Takes the sums of two rows apart, of which 128 columns stay below 2^15.
fn settle(i: u32) {
    let both = found[i];
    let at = i / VEC4S * 2u * VEC4S + i % VEC4S;
    sums[at] += bitcast<vec4<i32>>(both << vec4<u32>(16u)) >> vec4<u32>(16u);
    sums[at + VEC4S] += bitcast<vec4<i32>>(both + vec4<u32>(0x8000u)) >> vec4<u32>(16u);
    found[i] = vec4<u32>();
}

// Holds byte b of the words of codes of two rows, the second one's times 2^16.
fn hold_byte(number: u32, b: u32, first: vec4<u32>, second: vec4<u32>) {
    bytes[4u * number + b] = signed_byte(first, b) + (signed_byte(second, b) << vec4<u32>(16u));
}

fn hold(number: u32, i: u32) {
    let first = between[row_codes[2u * number] + i];
    let second = between[row_codes[2u * number + 1u] + i];
    hold_byte(number, 0u, first, second);
    hold_byte(number, 1u, first, second);
    hold_byte(number, 2u, first, second);
    hold_byte(number, 3u, first, second);
}

// The sums of a lane's outputs of a tile for all rows of the block.
fn sum_rows(part: Part, tile: u32, lane: u32) {
    let base = first_words(part, tile, lane);
    let vec4s = code_vec4s();
    sums = array<vec4<i32>, VEC4S * ROWS>();
    found = array<vec4<u32>, VEC4S * NUMBERS>();
    for (var first = 0u; first < vec4s; first += 8u) {
        // Lanes behind the last codes hold those again, and are multiplied by weights of 0.
        let i = min(first + lane_number, vec4s - 1u);
        hold(0u, i);
        if NUMBERS > 1u { hold(1u, i); }
        add_columns(part.bits, base, first);
        settle(0u);
        settle(1u);
        settle(2u);
        settle(3u);
    }
}

// Makes set `number` that of row r of the block.
fn take_row(r: u32, number: u32) {
    row_codes[r] = number * (UNITS + 1u);
    let v = bitcast<vec2<f32>>(between[row_codes[r] + UNITS].xy);
    row_scale[r] = v.x;
    row_total[r] = i32(v.y);
}

// The products of row r of the block.
fn product(part: Part, r: u32, q: u32) -> vec4<f32> {
    return vec4<f32>(exact_sums(sums[r * VEC4S + q], row_total[r], part.bits)) * (part.scale * row_scale[r]);
}

#ifdef PLAIN
#else
var<workgroup> places: array<u32, MAX_ROWS>; // row · slots + slot of the rows of an expert
var<workgroup> n_places: u32;

// Finds the places of an expert.
fn find_places(id: u32, expert: u32) {
    workgroupBarrier();
    if id == 0u {
        var n = 0u;
        let rows = counted(params.counted_by, params.rows);
        for (var row = 0u; row < rows; row++) {
            for (var slot = 0u; slot < params.slots; slot++) {
                if expert_of(row, slot) == expert && n < MAX_ROWS {
                    places[n] = row * params.slots + slot;
                    n++;
                }
            }
        }
        n_places = n;
    }
    workgroupBarrier();
}
#endif

#ifdef PLAIN
fn plain(id: u32, group: vec2<u32>) {
    let rows = counted(params.counted_by, params.rows);
    let tile = find_tile(0u, group.x);
    let part = part_at(tile.part);
    let row0 = group.y * ROWS;
    for (var r = 0u; r < ROWS; r++) { take_row(r, min(row0 + r, rows - 1u) * TERMS + tile.part); }
    sum_rows(part, tile.tile, id);
    for (var q = 0u; q < VEC4S; q++) {
        let in_part = ((tile.tile * LANES + id) * VEC4S + q) * 4u;
        for (var r = 0u; r < ROWS; r++) {
            if row0 + r < rows {
                write4(product(part, r, q), in_part, part.rows, (row0 + r) * params.out_width + tile.out + in_part);
            }
        }
    }
}
#endif

#ifdef SWIGLU
fn swiglu(id: u32, tile: u32, expert: u32) {
    find_places(id, expert);
    for (var first = 0u; first < n_places; first += ROWS) {
        var result = array<vec4<f32>, VEC4S * ROWS>();
        var outs = 0u;
        for (var t = 0u; t < TERMS; t++) {
            let part = part_at(expert * TERMS + t);
            outs = part.rows;
            for (var r = 0u; r < ROWS; r++) { take_row(r, places[min(first + r, n_places - 1u)] * TERMS + t); }
            sum_rows(part, tile, id);
            for (var r = 0u; r < ROWS; r++) {
                for (var q = 0u; q < VEC4S; q++) {
                    result[r * VEC4S + q] = accumulate(result[r * VEC4S + q], product(part, r, q), 0u, t);
                }
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            if first + r < n_places {
                for (var q = 0u; q < VEC4S; q++) {
                    let in_part = ((tile * LANES + id) * VEC4S + q) * 4u;
                    write4(result[r * VEC4S + q], in_part, outs, places[first + r] * params.out_width + in_part);
                }
            }
        }
    }
}
#endif

#ifdef COMBINE
fn products(id: u32, tile: u32, in_tile: u32, expert: u32) {
    find_places(id, expert);
    let part = part_at(expert);
    for (var first = 0u; first < n_places; first += ROWS) {
        for (var r = 0u; r < ROWS; r++) { take_row(r, places[min(first + r, n_places - 1u)]); }
        sum_rows(part, tile, id);
        for (var r = 0u; r < ROWS; r++) {
            if first + r < n_places {
                let at = FIRST_PRODUCT + places[first + r] * TILES * TILE_LANES + in_tile;
                for (var q = 0u; q < VEC4S; q++) { between[at + q] = bitcast<vec4<u32>>(product(part, r, q)); }
            }
        }
    }
}

fn combine(id: u32, tile: u32) {
    let in_tile = (tile * LANES + id) * VEC4S;
    let all = params.experts + params.slots - params.k;
    for (var expert = 0u; expert < all; expert++) { products(id, tile, in_tile, expert); }
    // A lane adds up what it has written itself, slot by slot.
    let rows = counted(params.counted_by, params.rows);
    for (var row = 0u; row < rows; row++) {
        for (var q = 0u; q < VEC4S; q++) {
            var sum = vec4<f32>();
            for (var t = 0u; t < TERMS; t++) {
                let at = FIRST_PRODUCT + (row * TERMS + t) * TILES * TILE_LANES + in_tile + q;
                sum = accumulate(sum, bitcast<vec4<f32>>(between[at]), row, t);
            }
            let in_part = (in_tile + q) * 4u;
            write4(sum, in_part, params.out_width, row * params.out_width + in_part);
        }
    }
}
#endif

@compute @workgroup_size(LANES)
fn main(
    @builtin(local_invocation_index) id: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(subgroup_invocation_id) in_subgroup: u32,
) {
    begin_tables(in_subgroup);
#ifdef PLAIN
    plain(id, group.xy);
#endif
#ifdef SWIGLU
    swiglu(id, group.x, group.y);
#endif
#ifdef COMBINE
    combine(id, group.x);
#endif
}
