// The table of the stack bound as `weights`; import it behind that binding.

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

// Σ code · activation from sums over stored codes: code = stored − 1, or 2 · stored − 1 at 1 bit.
fn exact_sums(stored: vec4<i32>, sum_of_codes: i32, bits: u32) -> vec4<i32> {
    return select(stored, 2 * stored, bits == 1u) - vec4<i32>(sum_of_codes);
}
