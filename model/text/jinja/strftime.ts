/** Python's `strftime` in the C locale, for a day and time given in parts. */
export interface LocalTime {
  readonly year: number;
  /** 1 to 12. */
  readonly month: number;
  readonly day: number;
  readonly hour: number;
  readonly minute: number;
  readonly second: number;
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/** The parts of a moment in this machine's time zone. */
export function localTime(date: Date): LocalTime {
  return {
    year: date.getFullYear(),
    month: date.getMonth() + 1,
    day: date.getDate(),
    hour: date.getHours(),
    minute: date.getMinutes(),
    second: date.getSeconds(),
  };
}

/** `2026-03-09`. */
export function isoDay(time: LocalTime): string {
  return strftime(time, "%Y-%m-%d");
}

/** `format` with its codes replaced; a code that Python's C library doesn't know stays as it is. */
export function strftime(time: LocalTime, format: string): string {
  return format.replace(/%(-?)([a-zA-Z%])/g, (whole, bare, code) => {
    const value = code === "%" ? "%" : field(time, code);
    if (value === undefined) return whole;
    return bare ? value.replace(/^[0 ]+(?=\d)/, "") : value;
  });
}

function field(time: LocalTime, code: string): string | undefined {
  const { year, month, day, hour, minute, second } = time;
  const two = (value: number) => String(value).padStart(2, "0");
  const at = Date.UTC(year, month - 1, day);
  const weekday = new Date(at).getUTCDay(), ofYear = Math.round((at - Date.UTC(year, 0, 1)) / 86_400_000) + 1;
  const week = (first: number) => two(Math.floor((ofYear + 6 - (weekday - first + 7) % 7) / 7));
  const named: Record<string, () => string> = {
    Y: () => String(year),
    y: () => two(year % 100),
    m: () => two(month),
    d: () => two(day),
    e: () => String(day).padStart(2, " "),
    j: () => String(ofYear).padStart(3, "0"),
    H: () => two(hour),
    I: () => two(hour % 12 || 12),
    M: () => two(minute),
    S: () => two(second),
    f: () => "000000",
    p: () => hour < 12 ? "AM" : "PM",
    A: () => DAYS[weekday],
    a: () => DAYS[weekday].slice(0, 3),
    B: () => MONTHS[month - 1],
    b: () => MONTHS[month - 1].slice(0, 3),
    h: () => MONTHS[month - 1].slice(0, 3),
    w: () => String(weekday),
    u: () => String(weekday || 7),
    U: () => week(0),
    W: () => week(1),
    Z: () => "",
    z: () => "",
    n: () => "\n",
    t: () => "\t",
    D: () => strftime(time, "%m/%d/%y"),
    x: () => strftime(time, "%m/%d/%y"),
    F: () => strftime(time, "%Y-%m-%d"),
    T: () => strftime(time, "%H:%M:%S"),
    X: () => strftime(time, "%H:%M:%S"),
    R: () => strftime(time, "%H:%M"),
    c: () => strftime(time, "%a %b %e %H:%M:%S %Y"),
  };
  return Object.hasOwn(named, code) ? named[code]() : undefined;
}
