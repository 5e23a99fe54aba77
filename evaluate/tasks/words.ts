/**
 * Words for needle keys, `adjective-noun`. RULER draws its keys from the package wonderwords; these lists are our own,
 * so keys differ from RULER's while their form is the same.
 */
const ADJECTIVES =
  `amber ancient bitter blank bold brave brief bright brisk broad broken bronze calm careful cheap chilly
civil clean clever close cloudy coarse cold common cool crisp crooked cruel curious curly damp dark dear deep dense dim
distant dizzy dull dusty eager early easy elder empty even exact faded faint fair faithful false famous fancy fierce fine
firm flat fluffy foggy formal fragile frank free fresh frosty gentle giant glad golden grand gray great green grim happy
harsh hasty heavy hidden high hollow honest humble hungry idle ivory jolly keen kind large late lazy light little lively
lonely long loud lovely low loyal lucid lucky mellow merry mighty mild misty modern modest muddy narrow neat nervous
nimble noble noisy novel odd old open pale patient plain pleasant polite proud pure purple quick quiet rapid rare ready
restless rigid ripe robust rough round royal rural rusty sandy scarce secret shallow sharp short shy silent silver simple
sleepy slim slow small smooth sober soft solid sour spare steady steep stern stiff stormy strange strict strong sturdy
subtle sudden sunny sweet swift tall tame tart tender thick thin tidy tiny tired tough tranquil true upright urban vague
vast velvet vivid warm wary weak wet whole wild wise witty wooden worn young zealous`;

const NOUNS =
  `acorn actor almond anchor apple apron arch arrow attic badge bakery balcony ballad bamboo barrel basin basket
beacon beaver bell bench berry bishop blanket blossom boat bottle boulder bracket branch bread bridge broom bucket buckle
butter button cabin cactus camel canal candle canoe canvas carpet carrot castle cedar chain chalk chapel cherry chimney
circle clock cloud clover coat cobweb coin comet compass copper coral cottage cousin crane crayon cricket crown curtain
daisy desk diary donkey dove drum eagle easel echo elbow engine falcon farmer feather fence ferry fiddle flute forest fossil
fountain fox funnel garden garlic gate ginger glacier globe glove goblet goose gravel guitar hammer harbor harp harvest
hazel hedge helmet heron hinge honey hornet island ivy jacket jar jewel kettle kitten ladder lagoon lamp lantern lemon
lentil letter lily lizard locket lumber magnet mango maple marble market meadow medal melon mirror mitten monkey mosaic
mountain mustard needle nettle notebook oak oasis ocean olive onion orchard orchid otter oven owl oyster paddle palace
panda paper parcel parrot pasture peach pebble pelican pencil pepper piano pickle pigeon pillow pine planet plum pocket
pony poppy potato prism pumpkin puppet quarry quilt rabbit radish raft rail raven reed ribbon river robin rocket roof rope
rose saddle sail salmon satchel sailor scarf school seed shadow shelf shell shepherd shield ship shoe shovel sparrow spoon
spruce squirrel stable statue stone stool stove straw stream sugar swan table tailor teapot temple thimble thistle thread
ticket tiger timber tomato torch tower trumpet tulip tunnel turnip turtle valley vase village vine violin wagon walnut
walrus weaver whale wheat wheel whistle willow window winter wizard wolf wool wren yarn zebra`;

export const adjectives: readonly string[] = ADJECTIVES.split(/\s+/);
export const nouns: readonly string[] = NOUNS.split(/\s+/);
