// Reading a stack of ternary matrices (src/quant/stack.rs) that is bound as `weights`, in vec4<u32>.

const TILE_LANES: u32 = 32u; // lanes of 4 rows in a tile

struct Part {
    first: u32, // first vec4 of its words
    bits: u32, // 1 or 2; with scales by group 6 and 8 too
    rows: u32,
    scale: f32,
    tiles: u32,
}

// A tile of a run of matrices: which matrix of the run, which tile of it, and where its outputs begin.
struct Tile {
    part: u32,
    tile: u32,
    out: u32,
}

fn part_at(matrix: u32) -> Part {
    let a = weights[1u + 2u * matrix];
    let b = weights[2u + 2u * matrix];
    return Part(a.x, a.y, a.z, bitcast<f32>(b.y), b.z);
}

// Tile `t` of the tiles of matrices `first`, `first + 1`, ...
fn find_tile(first: u32, t: u32) -> Tile {
    var at = Tile(0u, t, 0u);
    var tiles = weights[2u + 2u * first].z;
    while at.tile >= tiles {
        at.tile -= tiles;
        at.out += weights[1u + 2u * (first + at.part)].z;
        at.part++;
        tiles = weights[2u + 2u * (first + at.part)].z;
    }
    return at;
}

// Words of weights of a row of the stack.
fn row_words(bits: u32) -> u32 {
    let columns = 32u / bits;
    return (weights[0].y + columns - 1u) / columns;
}

// Σ code · activation from sums over stored codes: code = stored − 1, or 2 · stored − 1 at 1 bit.
fn exact_sums(stored: vec4<i32>, sum_of_codes: i32, bits: u32) -> vec4<i32> {
    return select(stored, 2 * stored, bits == 1u) - vec4<i32>(sum_of_codes);
}
