/** Ten short texts of several kinds, written for this, with six natural questions each and what a right answer says. */

export interface AskedText {
  readonly kind: string;
  readonly text: string;
  /** A question, and the wordings of which one must stand in the answer. */
  readonly questions: readonly (readonly [question: string, ...accepted: string[]])[];
}

export const TEXTS: readonly AskedText[] = [
  {
    kind: "prose",
    text:
      `The ferry to Harrow Island left at dusk, and Marta was the last to board. She carried a birdcage wrapped in a ` +
      `green shawl, and she would not say what was in it. The captain, a thin man called Oskar Lund, had sailed the ` +
      `strait for thirty-one years and had never once been asked to turn back. That evening he was asked twice.\n\n` +
      `The first time it was the schoolteacher, who had left her spectacles on the pier. Oskar laughed and kept his ` +
      `course. The second time it was Marta. She had lifted the shawl, found the cage empty, and gone as white as the ` +
      `foam behind the stern. "He was the last of them," she said. "My father raised owls for forty years, and he was ` +
      `the last of them." Oskar looked at the sky, where the rain was coming in from the north, and turned the wheel.\n\n` +
      `They found the owl on the roof of the ticket office, soaked and furious. It bit the harbour master in the thumb. ` +
      `When the ferry reached the island at last it was past midnight, and the baker, who had waited for his flour ` +
      `since seven, gave everyone on board a warm roll and asked no questions at all.`,
    questions: [
      ["What was the name of the captain?", "Oskar Lund", "Oskar"],
      ["What animal was in the birdcage?", "owl"],
      ["What colour was the shawl?", "green"],
      ["How long had the captain sailed the strait?", "thirty-one", "31"],
      ["Where was the owl found?", "roof", "ticket office"],
      ["What did the baker give everyone?", "roll", "warm roll", "rolls"],
    ],
  },
  {
    kind: "README",
    text:
      `# tidewatch\n\nA small command line tool that warns you before the tide reaches your path.\n\n## Install\n\n` +
      `    cargo install tidewatch\n\nYou need Rust 1.74 or newer. There is no Windows build yet.\n\n## Use\n\n` +
      `    tidewatch --station 8443970 --height 2.4m --notify mail\n\nThe program looks up the next seven days in the ` +
      `tables of the harbour office and prints every hour at which the water stands higher than \`--height\`. Times are ` +
      `local unless you pass \`--utc\`.\n\n## Options\n\n- \`--station\`: number of the station. Required.\n- ` +
      `\`--height\`: the height of your path above chart datum. Default 2 m.\n- \`--notify\`: \`mail\`, \`sound\` or ` +
      `\`none\`.\n- \`--cache\`: folder for downloaded tables. Default \`~/.tidewatch\`.\n\n## Limits\n\nWind is not ` +
      `taken into account. In a storm the water may stand half a metre higher than the tables say.\n\n## Licence\n\n` +
      `MIT. The tables belong to the harbour office and may not be sold.\n`,
    questions: [
      ["What does this tool do?", "warns", "warn", "tide"],
      ["Which version of Rust do I need?", "1.74"],
      ["What is the default height?", "2 m", "2m", "2 metres", "2 meters"],
      ["Under which licence is the program?", "MIT"],
      ["What is not taken into account?", "wind"],
      ["Where are downloaded tables kept?", "tidewatch folder", "~/.tidewatch", "tidewatch"],
    ],
  },
  {
    kind: "table",
    text:
      `Monthly report of the five stations (2024, March)\n\n| station | manager | bikes | rides | repairs | income |\n` +
      `| ------- | ------- | ----- | ----- | ------- | ------ |\n| Airport | Chen | 40 | 1210 | 17 | 3025 EUR |\n` +
      `| Bridge | Okafor | 25 | 980 | 9 | 2210 EUR |\n| Castle | Silva | 18 | 455 | 21 | 1130 EUR |\n` +
      `| Docks | Haddad | 32 | 1875 | 12 | 4410 EUR |\n| East Gate | Novak | 12 | 310 | 3 | 720 EUR |\n\n` +
      `The station with the most rides gets the new bikes in April.\n`,
    questions: [
      ["Who manages the Castle station?", "Silva"],
      ["How many bikes are at the Bridge station?", "25"],
      ["What was the income of the Docks station?", "4410"],
      ["Which station had the most rides?", "Docks"],
      ["How many repairs were there at the Airport station?", "17"],
      ["When do the new bikes come?", "April"],
    ],
  },
  {
    kind: "log",
    text:
      `2025-02-11 03:12:04 INFO  backup[811]: started, target=/mnt/vault7\n2025-02-11 03:12:09 INFO  backup[811]: ` +
      `copying 18422 files\n2025-02-11 03:14:31 WARN  disk[77]: /mnt/vault7 is 91% full\n2025-02-11 03:15:02 INFO  ` +
      `sshd[2203]: accepted key for user priya from 10.4.0.19\n2025-02-11 03:15:40 ERROR backup[811]: write failed: no ` +
      `space left on device\n2025-02-11 03:15:41 INFO  backup[811]: retrying in 60 s\n2025-02-11 03:16:20 INFO  ` +
      `cleanup[2240]: user priya removed /mnt/vault7/old (212 GB)\n2025-02-11 03:16:41 INFO  backup[811]: resumed\n` +
      `2025-02-11 03:48:55 INFO  backup[811]: finished, 18422 files, 36 min\n2025-02-11 03:49:00 INFO  mailer[90]: ` +
      `report sent to ops@example.org\n`,
    questions: [
      ["Which user logged in?", "priya"],
      ["Why did the write fail?", "no space", "no space left", "full"],
      ["How many files were copied?", "18422"],
      ["How full was the disk?", "91%", "91 percent"],
      ["How much space was freed?", "212 GB", "212"],
      ["To whom was the report sent?", "ops@example.org", "ops example"],
    ],
  },
  {
    kind: "code",
    text: `"""Prices for the museum shop."""\n\nTAX = 0.19\nFREE_SHIPPING_FROM = 60\n\n\nclass Basket:\n    def ` +
      `__init__(self, customer):\n        self.customer = customer\n        self.items = []\n\n    def add(self, name, ` +
      `price, count=1):\n        if price < 0:\n            raise ValueError("a price can't be negative")\n        ` +
      `self.items.append((name, price, count))\n\n    def net(self):\n        return sum(price * count for _, price, ` +
      `count in self.items)\n\n    def shipping(self):\n        # Members never pay shipping.\n        if ` +
      `self.customer.member or self.net() >= FREE_SHIPPING_FROM:\n            return 0\n        return 4.90\n\n    def ` +
      `total(self):\n        return round(self.net() * (1 + TAX) + self.shipping(), 2)\n`,
    questions: [
      ["What is the tax rate?", "0.19", "19%", "19 percent"],
      ["From which amount is shipping free?", "60"],
      ["What is the name of the class?", "Basket"],
      ["Which error is raised for a negative price?", "ValueError", "a price can't be negative"],
      ["How much does shipping cost otherwise?", "4.90", "4.9"],
      ["Who never pays shipping?", "members", "member"],
    ],
  },
  {
    kind: "dialogue",
    text:
      `Anna: Did you call the plumber?\nBen: Yes. He can come on Thursday at nine.\nAnna: Not before? The kitchen is ` +
      `under water.\nBen: He said his van broke down. I put a bucket under the pipe.\nAnna: Which bucket?\nBen: The blue ` +
      `one from the garage.\nAnna: That one has a hole, Ben.\nBen: Oh. That explains the carpet.\nAnna: I'm calling my ` +
      `sister. Her neighbour Tom is a plumber too.\nBen: The one who talks about his boat all the time?\nAnna: He can ` +
      `talk about what he likes, if he comes today.\nBen: Ask him what it costs. Thursday's man wants eighty pounds.\n` +
      `Anna: Tom does it for a cake. Chocolate, last time.\nBen: Then I'll go and buy eggs.\n`,
    questions: [
      ["When can the plumber come?", "Thursday", "Thursday at nine"],
      ["What broke down?", "van"],
      ["What is wrong with the bucket?", "hole"],
      ["Who is Tom?", "plumber", "neighbour", "neighbor"],
      ["How much does the first plumber want?", "eighty", "80"],
      ["What does Ben want to buy?", "eggs"],
    ],
  },
  {
    kind: "recipe",
    text:
      `Lentil soup with lemon\n\nServes 4. Takes 40 minutes.\n\nIngredients\n- 250 g red lentils\n- 2 onions\n- 3 ` +
      `carrots\n- 1 litre vegetable stock\n- 1 teaspoon cumin\n- juice of 1 lemon\n- 2 tablespoons olive oil\n\nMethod\n` +
      `1. Chop the onions and carrots. Fry them in the oil for 8 minutes, until the onions are soft.\n2. Stir in the ` +
      `cumin and let it toast for one minute.\n3. Add the lentils and the stock. Bring to the boil, then simmer for 20 ` +
      `minutes.\n4. Blend half of the soup, so that it is creamy but not smooth.\n5. Take it off the heat and stir in ` +
      `the lemon juice. Do not boil it again, or it turns bitter.\n\nKeeps for three days in the fridge.\n`,
    questions: [
      ["How many people does the soup serve?", "4", "four"],
      ["How many carrots do I need?", "3", "three"],
      ["Which spice is used?", "cumin"],
      ["How long does the soup simmer?", "20 minutes", "twenty minutes", "20"],
      ["Why must it not be boiled again?", "bitter"],
      ["How long does it keep in the fridge?", "three days", "3 days"],
    ],
  },
  {
    kind: "legal",
    text:
      `RENTAL AGREEMENT (extract)\n\n§ 1 Object. The landlord lets to the tenant the workshop at 14 Mill Lane, with the ` +
      `yard behind it. The attic is not included.\n\n§ 2 Term. The agreement begins on 1 May 2025 and runs for three ` +
      `years. It is extended by one year each time unless one of the parties gives notice in writing six months before ` +
      `its end.\n\n§ 3 Rent. The rent is 1,150 euros a month and is due on the third working day. If payment is more than ` +
      `ten days late, the landlord may charge 25 euros.\n\n§ 4 Deposit. The tenant pays a deposit of two monthly rents. It ` +
      `is returned within eight weeks after the keys are handed over.\n\n§ 5 Use. The workshop serves for the repair of ` +
      `musical instruments. Any other use needs the landlord's consent. Dogs may be kept; the keeping of poultry is ` +
      `forbidden.\n`,
    questions: [
      ["What is the monthly rent?", "1150", "1,150"],
      ["When does the agreement begin?", "1 May 2025", "May 1"],
      ["How long does the agreement run?", "three years", "3 years"],
      ["What may the tenant not keep?", "poultry"],
      ["What is the workshop used for?", "musical instruments", "instruments"],
      ["How much is charged for late payment?", "25"],
    ],
  },
  {
    kind: "news",
    text:
      `LINDHOLM, 9 October. The town's only bridge for cars will stay closed until the end of November, the council said ` +
      `on Tuesday. Divers had found cracks in two of the six pillars. "We would rather be late than sorry," said the ` +
      `mayor, Ingrid Falk.\n\nThe repair is expected to cost 3.2 million crowns, of which the state pays half. Until then ` +
      `buses go round by Torsby, which takes 35 minutes longer. Pedestrians may use the old railway bridge, which has been ` +
      `fitted with lamps.\n\nShopkeepers on the south bank fear for their Christmas trade. "My customers come from the ` +
      `other side," said Peter Nyman, who sells toys. The council has promised them free parking in December. A petition ` +
      `for a second bridge was signed by 4,100 of the town's 9,000 inhabitants.\n`,
    questions: [
      ["Who is the mayor?", "Ingrid Falk", "Falk"],
      ["Until when will the bridge stay closed?", "end of November", "November"],
      ["How much will the repair cost?", "3.2 million"],
      ["What did the divers find?", "cracks", "cracks in two"],
      ["What does Peter Nyman sell?", "toys"],
      ["How many people signed the petition?", "4100", "4,100"],
    ],
  },
  {
    kind: "JSON",
    text:
      `{\n  "order": 70231,\n  "customer": { "name": "Lena Brandt", "city": "Graz", "email": "lena@example.com" },\n  ` +
      `"items": [\n    { "product": "desk lamp", "colour": "yellow", "quantity": 2, "price": 34.5 },\n    { "product": ` +
      `"notebook", "colour": "black", "quantity": 5, "price": 3.2 },\n    { "product": "office chair", "colour": "grey", ` +
      `"quantity": 1, "price": 189 }\n  ],\n  "shipping": { "method": "express", "carrier": "NordPost", "days": 2 },\n  ` +
      `"payment": { "type": "invoice", "due": "2025-07-31", "paid": false },\n  "note": "Please ring at the back door."\n}\n`,
    questions: [
      ["Who is the customer?", "Lena Brandt", "Lena"],
      ["What colour is the desk lamp?", "yellow"],
      ["How many notebooks were ordered?", "5", "five"],
      ["Which carrier ships the order?", "NordPost"],
      ["What does the office chair cost?", "189"],
      ["Where should the courier ring?", "back door"],
    ],
  },
];
