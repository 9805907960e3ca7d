"""The picture of a run: how many times as fast as the source itself warmfs and its peers do what nobody has done before.
A bar begins at 1, which is the source itself, so the scale can be logarithmic without a bar telling a lie."""

import math
from xml.sax.saxutils import escape

WORKS = ["seq", "tar", "find", "git"]
SYSTEMS = ["warmfs", "rclone", "mergerfs", "bindfs"]
WIDTH, LEFT, RIGHT = 860, 110, 150
ROW, BAR, HEADING, GAP, TOP = 22, 14, 24, 14, 92

# A ground of its own: the page's may be light or dark, whatever the reader's system says.
STYLE = """
  .ground { fill: #ffffff; stroke: #d0d7de }
  text { font-family: -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 18px; font-weight: 600 }
  .heading { font-size: 14px; font-weight: 600 }
  .name, .value { font-size: 13px }
  .value { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }
  .quiet { font-size: 12px; fill: #59636e; font-weight: 400 }
  .own { font-weight: 600 }
  .line { stroke: #d8dee4; stroke-width: 1 }
  .one { stroke: #59636e; stroke-width: 1.5 }
  .bar { fill: #9aa4ae }
  .bar.own { fill: #d9480f }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #151b23; stroke: #3d444d }
    text { fill: #f0f6fc }
    .value { stroke: #151b23 }
    .value { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }
  .quiet { fill: #9198a1 }
    .line { stroke: #2a313c }
    .one { stroke: #9198a1 }
    .bar { fill: #6e7681 }
    .bar.own { fill: #ff922b }
  }
"""


def draw(data):
    """SVG from a run's JSON."""
    delay = 20 if 20 in data["delays"] else data["delays"][0]
    works = [work for work in WORKS if (seconds_of(data, work, delay, "direct"))]
    speeds = {work: speeds_of(data, work, delay) for work in works}
    numbers = [speed for row in speeds.values() for speed, _, _ in row.values() if speed]
    low, high = min([0.8, *numbers]), max([12, *numbers])
    # Some air on both sides, and room for the value of a bar that goes to the left.
    low, high = low / 1.05, high * 1.1

    def x(speed):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(speed / low) / math.log(high / low)

    height = TOP + sum(HEADING + ROW * len(row) + GAP for row in speeds.values()) + 26
    bottom = height - 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(summary(speeds, delay))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        text(20, 32, "title", f"Cold work on a source with {delay:g} ms per request"),
        text(20, 54, "quiet", "Times as fast as the source itself; bars to the left are slower. Beside them the seconds that it takes."),
    ]
    for tick in [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]:
        if low <= tick <= high:
            kind = "one" if tick == 1 else "line"
            parts.append(f'<line class="{kind}" x1="{x(tick):.1f}" y1="{TOP - 12}" x2="{x(tick):.1f}" y2="{bottom}"/>')
            parts.append(text(x(tick), TOP - 18, "quiet", f"{tick:g} ×", "middle"))
    y = TOP
    for work in works:
        direct = seconds_of(data, work, delay, "direct")
        label = f'{escape(title_of(data, work))}<tspan class="quiet" dx="10">the source itself: {shown(*direct)}</tspan>'
        parts.append(background(20, y + 2, 7.2 * len(title_of(data, work)) + 200, HEADING - 4))
        parts.append(f'<text class="heading" x="20" y="{y + 16}">{label}</text>')
        y += HEADING
        for name, (speed, seconds, partial) in speeds[work].items():
            own = " own" if name == "warmfs" else ""
            parts.append(text(LEFT - 10, y + BAR, f"name{own}", name, "end"))
            if speed is None:
                parts.append(text(x(1) + 8, y + BAR, "quiet", "not done"))
            else:
                start, end = sorted([x(1), x(speed)])
                parts.append(
                    f'<rect class="bar{own}" x="{start:.1f}" y="{y + 2}" width="{max(end - start, 2):.1f}" height="{BAR}" rx="2"/>'
                )
                value = f"{precise(speed)} ×"
                took = f'<tspan class="quiet" dx="8">{shown(seconds, partial)}</tspan>'
                parts.append(f'<text class="value{own}" x="{end + 8:.1f}" y="{y + BAR}">{value}{took}</text>')
            y += ROW
        y += GAP
    parts.append(text(20, height - 14, "quiet", footnote(data)))
    return "\n".join([*parts, "</svg>", ""])


def text(x, y, kind, words, anchor="start"):
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def background(x, y, width, height):
    """Keeps the lines of the scale out of a heading."""
    return f'<rect class="ground" style="stroke: none" x="{x}" y="{y}" width="{width:.0f}" height="{height}"/>'


def speeds_of(data, work, delay):
    """Times as fast as the source, seconds, and whether these are scaled; for each that took part."""
    direct = seconds_of(data, work, delay, "direct")[0]
    row = {}
    for name in SYSTEMS:
        took = seconds_of(data, work, delay, name)
        if took:
            row[name] = (direct / took[0], *took)
        elif took is None:
            row[name] = (None, None, False)
    return row


def seconds_of(data, work, delay, name):
    """How long all of the work takes, and whether that is scaled from a part. None where it failed, nothing where it did
    not take part."""
    case = f"{work}, {delay:g} ms: {'cold' if work == 'git' else 'rate'}"
    row = data["medians"].get(case, {})
    if name not in row or "not there" in data["values"][case][name]:
        return ()
    value = row[name]
    if value is None:
        return None
    sizes = data["sizes"]
    folders, files = sizes["tree"]
    whole = {
        "seq": lambda: sizes["stream"] / 1e6 / value,
        "tar": lambda: sizes["tar"][0] * sizes["tar"][1] / value,
        "find": lambda: (1 + folders + folders * files) / value,
        "git": lambda: value,
    }
    partial = [case, name] in data["partial"]
    if work == "git" and partial:
        # Not a fraction but a limit: nothing says how much of it was done.
        return None
    return whole[work](), partial


def title_of(data, work):
    sizes = data["sizes"]
    folders, files = sizes["tree"]
    return {
        "seq": f"Sequential read of {sizes['stream'] >> 20} MiB",
        "tar": f"tar of {sizes['tar'][0] * sizes['tar'][1]:,} files of 4 KiB",
        "find": f"find -ls of {folders * files:,} files",
        "git": f"git status in a repository of {folders * files:,} files",
    }[work]


def footnote(data):
    versions = data["machine"]["versions"]
    words = [(versions.get(name) or "").replace("version", "").replace(":", "").replace("rclone v", "rclone ") for name in SYSTEMS]
    known = ", ".join(" ".join(word.split()) for word in words if word)
    scaled = "; ~ scaled from the first seconds" if data["partial"] else ""
    return f"Medians of rounds, Linux {data['machine']['kernel'].split('-')[0]}; {known}{scaled}"


def summary(speeds, delay):
    known = [(work, row["warmfs"][0]) for work, row in speeds.items() if row.get("warmfs", (None,))[0]]
    figures = ", ".join(f"{work} {precise(speed)}" for work, speed in known)
    return f"warmfs, times as fast as a source with {delay:g} ms per request: {figures}"


def precise(number):
    return f"{number:.0f}" if number >= 9.95 else f"{number:.1f}"


def shown(seconds, partial):
    digits = 0 if seconds >= 9.95 else 1 if seconds >= 0.995 else 2
    return f"{'~ ' if partial else ''}{seconds:.{digits}f} s"
