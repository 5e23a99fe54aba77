/** Words and sentence patterns of the text that calibration makes (`text.ts`). */

/** Splits a line of words. */
const words = (text: string) => text.trim().split(/\s+/);

export const FIRST_NAMES = words(`
  Ada Bruno Celia Dmitri Esther Farid Greta Hugo Ines Jonas Kira Lionel Marta Nils Olga Pavel Quentin Rosa Stefan Tilda
  Umar Vera Walter Xenia Yusuf Zelda Abel Bianca Conrad Daria Emil Fiona`);

export const LAST_NAMES = words(`
  Albrecht Barlow Castell Dunmore Eckhart Farrow Gallagher Hollis Ivanov Jansen Keller Lindqvist Marlowe Novak Okafor
  Petrov Quist Romero Schaefer Tanaka Ulrich Varga Whitfield Yates Zimmer Abbott Brandt Corso`);

export const PLACES = words(`
  Aldermouth Brackwater Colmere Dunsford Eastquay Fallow Graymoor Harrowgate Inverloch Jutland Kestrel Larkhill Midvale
  Northby Oxley Penrose Quarley Ravenna Saltash Thornbury Upton Vantage Westerley Yarrow`);

export const TRADES = words(`
  baker carpenter surveyor printer tailor glazier midwife clerk gardener mason pilot cooper notary brewer teacher welder
  chemist archivist porter cartographer`);

export const NOUNS = words(`
  ledger kettle ladder orchard valve engine packet harbour window parcel barrel chimney meadow compass garden bridge
  cellar wagon mirror bottle ticket hinge needle drawer lamp pump furnace fence saddle rudder bucket curtain shelf
  buffer queue index socket signal record cursor filter schema`);

export const ADJECTIVES = words(`
  narrow copper quiet broken early northern spare wooden heavy pale empty crooked second loose damp ancient yellow
  careful sudden local hollow bright former square rapid silent plain gentle`);

export const VERBS = words(`
  carry open repair count measure bury borrow deliver paint lift close sort weigh clean fetch hide inspect load move
  parse merge update rotate`);

/** Sentences of made-up prose; the words in braces are drawn. */
export const PROSE_PATTERNS: readonly string[] = [
  "{name} came to {place} as a {trade} and stayed for {number} years.",
  "Nobody could {verb} the {thing} without asking {first} first.",
  "In those days the road from {place} to {place} took {number} hours on foot.",
  "The {noun} was {adjective}, and so was the {noun} beside it.",
  "It was {first} who noticed that the {thing} had been moved to the {noun} house.",
  "They agreed to {verb} it on {date}, whatever the weather would be.",
  "Behind the {noun} there was a {thing}, and behind that nothing at all.",
  '"If you {verb} it now," said {first}, "you will not have to {verb} it twice."',
  "The letter, registered as {code}, never reached {place}.",
  "{first} paid {number} crowns for the {noun} and sold it for {number}.",
  "Most of the {noun}s in {place} are {adjective}, though the {trade} would not admit it.",
  "After the {noun} closed, {name} went back to being a {trade}.",
  "Some say the {thing} still lies under the {noun} at {place}; others say {first} took it.",
  "The {trade} kept {number} {adjective} {noun}s in the cellar and told no one.",
  "By evening the {noun} had gone {adjective}, which surprised even the {trade}.",
  "What {first} wanted was simple: to {verb}, to {verb}, and then to sleep.",
];

export const SPEECH_PATTERNS: readonly string[] = [
  "Did you {verb} the {thing} yet?",
  "Not before {date}. The {trade} in {place} has it.",
  "Then ask {first}, I gave the {noun} away.",
  "It is in the {adjective} {noun}, third shelf, marked {code}.",
  "I thought we had {number} of them.",
  "We did. {first} took {number} to {place}.",
  "Well, somebody has to {verb} it.",
  "Call {name}, extension {number}.",
  "No, that was the {noun}. The {noun} is still {adjective}.",
  "Fine. Leave the {noun} with the {trade} and let me know.",
];
