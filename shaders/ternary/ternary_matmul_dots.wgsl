// Codes × ternary matrices for many rows, where a dot product of bytes is one instruction (ops/ternary_matmul.rs): a lane keeps 4
// outputs of 8 rows, so that a block of 32 columns of the weights is unpacked once for 8 rows. A workgroup is 32 lanes times
// SPLIT_K shares of the columns; codes go through workgroup memory, and the shares are added at the end.
// Grid: x = tiles of 128 outputs, y = blocks of 8 rows.
#bind var<storage, read> codes: array<vec4<u32>>; // [rows, sets, set_words / 4]
#import ternary_blocks
#import byte_dots

const SPLIT_K: u32 = 4u;
const RUN: u32 = 8u; // blocks of 32 columns that go through workgroup memory together

// What the rows have for 32 columns. One computed place for all of it: each is checked against the end of its array.
struct Block {
    codes: array<array<vec4<u32>, 2>, ROWS>,
}

var<workgroup> run: array<Block, RUN>;
var<workgroup> shares: array<vec4<i32>, SPLIT_K * SPLIT_K * TILE_LANES>;

var<private> sums: array<vec4<i32>, ROWS>; // over stored codes

// Loads the codes of all rows for blocks of columns from `first` on; those behind the last one are not read.
fn load(id: u32, block: u32, matrix: u32, first: u32) {
    let vectors = params.set_words / 4u;
    for (var nth = 0u; nth < 2u * ROWS * RUN / (TILE_LANES * SPLIT_K); nth++) {
        let i = id + nth * TILE_LANES * SPLIT_K;
        let r = i / (2u * RUN);
        let v = i % (2u * RUN);
        let which = set_of(row_at(block, r), matrix);
        run[v / 2u].codes[r][v % 2u] = codes[which * vectors + min(2u * first + v, vectors - 1u)];
    }
}

// Adds block `b` of columns, which is number `nth` of those in workgroup memory.
fn add_block(at: u32, b: u32, nth: u32, words: u32, bits: u32) {
    let left = half_of(at, b, 0u, words, bits);
    let right = half_of(at, b, 1u, words, bits);
    for (var r = 0u; r < ROWS; r++) {
        sums[r] += sum_of(left, run[nth].codes[r][0]) + sum_of(right, run[nth].codes[r][1]);
    }
}

// A tile of a matrix of those from `first` on, for a block of rows: the outputs of `lane`, by all shares of the columns.
fn tile_products(id: u32, block: u32, first: u32, tile: Tile) {
    let lane = id % TILE_LANES;
    let share = id / TILE_LANES;
    sums = array<vec4<i32>, ROWS>();
    let part = part_at(first + tile.part);
    let words = row_words(part.bits);
    let at = part.first + tile.tile * words * TILE_LANES + lane;
    let blocks = (weights[0].y + 31u) / 32u;
    for (var b0 = 0u; b0 < blocks; b0 += RUN) {
        workgroupBarrier();
        load(id, block, tile.part, b0);
        workgroupBarrier();
        for (var b = b0 + share; b < min(b0 + RUN, blocks); b += SPLIT_K) {
            add_block(at, b, b - b0, words, part.bits);
        }
    }
    let in_part = (tile.tile * TILE_LANES + lane) * 4u;
    for (var r0 = 0u; r0 < ROWS; r0 += SPLIT_K) {
        workgroupBarrier();
        for (var r = 0u; r < SPLIT_K; r++) { shares[(share * SPLIT_K + r) * TILE_LANES + lane] = sums[r0 + r]; }
        workgroupBarrier();
        var sum = vec4<i32>();
        for (var s = 0u; s < SPLIT_K; s++) { sum += shares[(s * SPLIT_K + share) * TILE_LANES + lane]; }
        finish(block, r0 + share, r0 / SPLIT_K, sum, tile, part, in_part);
    }
}

@compute @workgroup_size(TILE_LANES, SPLIT_K)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let block = group.y;
    let first = first_matrix(block);
    if first == NO_ROW { return; }
    let tile = find_tile(first, group.x);
    tile_products(id, block, first, tile);
#ifdef GATED
    tile_products(id, block, first, Tile(1u, tile.tile, tile.out));
#endif
}
