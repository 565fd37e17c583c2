// Rings of points [x, y] in level-0 pixels, open: the first point does not stand at the end again.

/** Compute the area of a ring. */
export const areaOf = (ring) => Math.abs(ring.reduce((sum, [x, y], i) => {
  const [nextX, nextY] = ring[(i + 1) % ring.length];
  return sum + x * nextY - nextX * y;
}, 0)) / 2;

/** Compute the box of a ring: [left, top, right, bottom]. */
export function boxOf(ring) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [x, y] of ring) {
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x);
    box[3] = Math.max(box[3], y);
  }
  return box;
}

/** Test whether a point lies in a polygon and in none of its holes. */
export function isInside(rings, [x, y]) {
  let inside = false;
  for (const ring of rings) {
    ring.forEach(([x1, y1], i) => {
      const [x2, y2] = ring[(i + 1) % ring.length];
      if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
    });
  }
  return inside;
}

/** Find the corner nearest to a point within reach: { ring, i }, or null. */
export function nearestCorner(rings, point, reach) {
  return nearest(rings, reach, (corner) => Math.hypot(corner[0] - point[0], corner[1] - point[1]));
}

/** Find the edge whose middle is nearest to a point within reach: { ring, i } of its first corner, or null. */
export function nearestMiddle(rings, point, reach) {
  return nearest(rings, reach, (corner, next) => {
    const [x, y] = middleOf(corner, next);
    return Math.hypot(x - point[0], y - point[1]);
  });
}

export const middleOf = ([x1, y1], [x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2];

function nearest(rings, reach, distance) {
  let [found, least] = [null, reach];
  rings.forEach((ring, k) => ring.forEach((corner, i) => {
    const away = distance(corner, ring[(i + 1) % ring.length]);
    if (away <= least) [found, least] = [{ ring: k, i }, away];
  }));
  return found;
}

/** Leave out the points of a line that lie within a distance of it. Source: Douglas and Peucker, 1973. */
export function simplified(points, distance) {
  const keep = new Set([0, points.length - 1]);
  const parts = [[0, points.length - 1]];
  while (parts.length) {
    const [first, last] = parts.pop();
    let [farthest, most] = [-1, distance];
    for (let i = first + 1; i < last; i += 1) {
      const away = fromLine(points[i], points[first], points[last]);
      if (away > most) [farthest, most] = [i, away];
    }
    if (farthest < 0) continue;
    keep.add(farthest);
    parts.push([first, farthest], [farthest, last]);
  }
  return points.filter((_, i) => keep.has(i));
}

function fromLine([x, y], [x1, y1], [x2, y2]) {
  const [dx, dy] = [x2 - x1, y2 - y1];
  const length = Math.hypot(dx, dy);
  return length ? Math.abs(dy * (x - x1) - dx * (y - y1)) / length : Math.hypot(x - x1, y - y1);
}
