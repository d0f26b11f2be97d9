// From a row's elements to its codes: a gated activation and a norm, if there are any, and 32 columns that one thread holds
// (ops/quantise_groups.rs). Imported where `params` with the bounds of all, the rows `x`, and with NORM its weights `w` are declared.
#ifdef GATED
#import gated
#endif
#import bounds

const VECTORS: u32 = 8u; // of 32 columns

var<private> held: array<vec4<f32>, VECTORS>; // 0 behind the last columns

// Elements 4i.. of the row that begins at x0, behind the activation.
fn element(x0: u32, i: u32) -> vec4<f32> {
#ifdef GATED
    return gated(x[x0 + i], x[x0 + params.width / 4u + i]);
#else
    return x[x0 + i];
#endif
}

#ifdef NORM
// The sum of the squares of four elements, as the norm reads them.
fn square(v: vec4<f32>) -> f32 {
    let in_bounds = bounded4(v, params.in_bound);
    return dot(in_bounds, in_bounds);
}

// The norm of a row with this sum of squares.
fn rms_of(squares: f32) -> f32 {
    return sqrt(at_least(squares / f32(params.width), params.rms_floor) + params.eps);
}
#endif

// Elements 4i.. of a row under the norm.
fn value(x0: u32, i: u32, rms: f32) -> vec4<f32> {
    let v = element(x0, i);
#ifdef NORM
    let normed = w[i] * bounded4(bounded4(v, params.in_bound) / rms, params.out_bound);
    return bounded4(normed, params.act_bound);
#else
    return bounded4(v, params.act_bound);
#endif
}

// Holds columns 32g.. of a row; all are loaded before one is used.
fn hold(x0: u32, g: u32, rms: f32) {
    let end = params.width / 4u;
    for (var v = 0u; v < VECTORS; v++) {
        let i = VECTORS * g + v;
        held[v] = select(vec4<f32>(), value(x0, min(i, end - 1u), rms), i < end);
    }
}

// The largest magnitude that is held, in the order of floats.
fn largest_held() -> i32 {
    var top = magnitude(params.act_floor);
    for (var v = 0u; v < VECTORS; v++) { top = max(top, largest(held[v])); }
    return top;
}

#ifdef WHOLE_ROW
#else
const LARGEST_CODES: u32 = 3u;
const MARGIN: f32 = 0.01;

// Σ (vk − code)² of what is held.
fn squared_error(k: f32) -> f32 {
    var sum = 0.0;
    for (var v = 0u; v < VECTORS; v++) {
        let scaled = held[v] * k;
        let error = scaled - codes_of(scaled, params.max_code);
        sum += dot(error, error);
    }
    return sum;
}

// The largest magnitude that is held becomes the largest code, or one of those below it that gives a smaller error.
fn best_k() -> f32 {
    let top = of_order(largest_held());
    var best = params.max_code / top;
    var least = squared_error(best);
    for (var below = 1u; below < LARGEST_CODES; below++) {
        let most = params.max_code - f32(below);
        let step = params.max_code / most;
        let error = squared_error(most / top) * step * step;
        if error < least - MARGIN {
            best = most / top;
            least = error;
        }
    }
    return best;
}
#endif

// 32 codes, what they are multiplied by, and their sum.
struct Codes {
    first: vec4<u32>,
    second: vec4<u32>,
    scale_and_sum: vec2<f32>,
}

// The codes of what is held. Of 32 columns with a factor of their own it is that of the least squared error.
fn codes_of_held(k: f32) -> Codes {
    var words = array<u32, VECTORS>();
    var total = 0.0;
    var by_value = 0.0;
    var squares = 0.0;
    for (var v = 0u; v < VECTORS; v++) {
        let scaled = held[v] * k;
        let code = codes_of(scaled, params.max_code);
        words[v] = word_of(code);
        total += code.x + code.y + code.z + code.w;
        by_value += dot(scaled, code);
        squares += dot(code, code);
    }
#ifdef WHOLE_ROW
    let scale = 1.0 / k;
#else
    let some = squares > 0.0;
    let scale = select(1.0, by_value / select(1.0, squares, some), some) / k;
#endif
    let first = vec4<u32>(words[0], words[1], words[2], words[3]);
    let second = vec4<u32>(words[4], words[5], words[6], words[7]);
    return Codes(first, second, vec2<f32>(scale, total));
}
