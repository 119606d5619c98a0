"""Story frames of the family "unexpected contents": ten for evaluation, ten for Fisher samples.

Within a pool the order in which contents and label are first and last mentioned is balanced over the frames,
in every condition, so that neither "the first noun" nor "the last noun" is a way to the answer.
"""

from __future__ import annotations

from tomfisher.tasks.frames import ContentsFrame

EVALUATION_FRAMES = (
    ContentsFrame(
        name="cottage-jar",
        container="jar",
        pairs=(("flour", "sugar"), ("rice", "salt"), ("beans", "lentils"), ("coffee", "tea")),
        opening="{name} has rented a cottage by the sea for a week, and today {he} wants to use the kitchen.",
        filled='On the shelf stands a clay jar full of {inside}, but the label on the jar says "{label}".',
        unseen="The lid is closed, and {name} has never looked into the jar. {He} reads the label.",
        agreed='On the shelf stands a clay jar full of {inside}, and the label on the jar says "{inside}". '
        "The {label} ran out a week ago.",
        told="{name} reads the label. Then {friend}, who owns the cottage, calls and says that the jar was "
        "filled with {inside} by mistake and holds no {label}. {name} believes {friend}.",
        seen="There is no lid on the jar. {name} reads the label, then looks into the jar and finds no {label} "
        "there, only {inside}.",
    ),
    ContentsFrame(
        name="moving-box",
        container="box",
        pairs=(("plates", "books"), ("shoes", "towels"), ("tools", "toys"), ("photos", "shirts")),
        opening="{name} is helping a neighbor move house.",
        filled='By the door there is a cardboard box marked "{label}", although the movers have packed it full '
        "of {inside}.",
        unseen="The box is taped shut, and {name} was not there when it was packed. {He} reads what is written "
        "on it.",
        agreed="The {label} went ahead in the first van. By the door there is a cardboard box marked "
        '"{inside}", and the movers have packed it full of {inside}.',
        told="{name} reads what is written on it. One of the movers, {friend}, tells {him} that the box holds "
        "no {label} at all and is full of {inside}. {name} takes {friend}'s word for it.",
        seen="The box is still open. {name} reads the writing, then looks inside and sees {inside} up to the "
        "top, and no {label}.",
    ),
    ContentsFrame(
        name="hardware-bag",
        container="bag",
        pairs=(("nails", "screws"), ("magnets", "batteries"), ("candles", "cables"), ("buttons", "nails")),
        opening="{name} has come to the hardware store to fetch an order.",
        filled="On the counter lies a paper bag. The clerk has filled it with {inside}, but has written "
        '"{label}" on it.',
        unseen="The bag is stapled at the top. {name} was outside while it was filled, and now {he} reads the "
        "word on it.",
        agreed="The store has sold all its {label} today. On the counter lies a paper bag. The clerk has filled "
        'it with {inside} and has written "{inside}" on it.',
        told="{name} reads the word on it. {friend}, the clerk, notices the mistake and tells {him} that the "
        'word "{label}" is wrong and that the bag is full of {inside}. {name} believes {friend}.',
        seen="The bag is wide open. {name} reads the word on it, looks in and sees {inside}, but no {label}.",
    ),
    ContentsFrame(
        name="attic-can",
        container="can",
        pairs=(("buttons", "cookies"), ("coins", "tea"), ("beads", "candy"), ("stamps", "coffee")),
        opening="On a rainy day, {name} is looking around in {his} uncle's house.",
        filled='The lid of an old metal can says "{label}", but years ago somebody emptied the can and filled it '
        "with {inside}.",
        unseen="{name} has never seen the can before and does not open it. {He} only reads the lid.",
        agreed='The lid of an old metal can says "{inside}", and somebody has indeed filled the can with '
        "{inside}. All the {label} in the house disappeared years ago.",
        told="{name} reads the lid. {friend}, who filled the can, walks in and tells {him} that it holds "
        "{inside} now and not {label}. {name} believes every word.",
        seen="The lid lies beside the can. {name} reads it, then looks into the can and sees nothing but "
        "{inside}.",
        holds="is filled with",
    ),
    ContentsFrame(
        name="restaurant-bottle",
        container="bottle",
        pairs=(("vinegar", "water"), ("oil", "juice"), ("juice", "vinegar"), ("water", "oil")),
        opening="It is {name}'s first day at work in a small restaurant.",
        filled="The cook has poured {inside} into a dark bottle, although the sticker on the bottle says "
        '"{label}".',
        unseen="The bottle is too dark to see through and has a cork in it, and {name} was not there when it was "
        "filled. {He} reads the sticker.",
        agreed="The cook has poured {inside} into a dark bottle, and the sticker on the bottle says "
        '"{inside}". The {label} is kept in another room.',
        told="{name} reads the sticker. {friend}, the cook, warns {him} that the sticker is old, and that what "
        "the bottle now holds is {inside}. {name} believes {friend}.",
        seen="The bottle has no cork. {name} reads the sticker, then pours a little into a glass and notices "
        "that it is not {label} but {inside}.",
        holds="contains",
    ),
    ContentsFrame(
        name="dealer-envelope",
        container="envelope",
        pairs=(("stamps", "photos"), ("coins", "letters"), ("cards", "stamps"), ("photos", "tickets")),
        opening="{name} works at a museum, and a thick envelope has come by mail from a dealer.",
        filled="The list on the outside promises {label}, but the dealer made a mistake and put in only "
        "{inside}.",
        unseen="The envelope is still sealed. {name} holds it in {his} hand and reads the list.",
        agreed="The dealer no longer sells {label}. The list on the outside promises {inside}, and the dealer "
        "put in only {inside}.",
        told="{name} reads the list. While the envelope is still sealed, {friend}, the dealer, calls to say that "
        "it contains {inside} instead of {label}. {name} believes {friend}.",
        seen="Someone has already cut the envelope open. {name} reads the list, then looks inside and sees "
        "{inside}, but no {label}.",
        holds="contains",
    ),
    ContentsFrame(
        name="theater-drawer",
        container="drawer",
        pairs=(("gloves", "socks"), ("buttons", "beads"), ("towels", "shirts"), ("shoes", "gloves")),
        opening="{name} is new in the sewing room of a theater.",
        filled="Last night somebody filled the top drawer with {inside}. The card on the front of the drawer "
        'still says "{label}".',
        unseen="The drawer is shut, and {name} has not opened it yet. {He} reads the card.",
        agreed="Last night somebody carried all the {label} out of the room and filled the top drawer with "
        '{inside}. The card on the front of the drawer says "{inside}".',
        told="{name} reads the card. {friend}, who filled the drawer, tells {him} to expect {inside} in it and "
        "not {label}. {name} trusts {friend} and believes it.",
        seen="The drawer is pulled out. {name} reads the card, then looks down and sees no {label} in the "
        "drawer, only {inside}.",
    ),
    ContentsFrame(
        name="prize-parcel",
        container="parcel",
        pairs=(("marbles", "pencils"), ("books", "candles"), ("cookies", "marbles"), ("magnets", "cards")),
        opening="At the school party, every prize is a parcel with a picture on it, and {name} has won one.",
        filled="The picture shows {label}, but the teacher mixed up the paper and wrapped {inside}.",
        unseen="The paper is taped on all sides, and {name} was not there when the prizes were wrapped. {He} "
        "looks at the picture.",
        agreed="The picture shows {inside}, and the teacher did wrap {inside}. Nobody at the party wins {label}.",
        told="{name} looks at the picture. {friend}, who helped the teacher, whispers that the parcel does not "
        "have {label} in it but is full of {inside}. {name} believes {friend}.",
        seen="The parcel has been torn open. {name} looks at the picture, then into the parcel, and sees that "
        "the teacher wrapped {inside} and no {label}.",
        holds="contains",
    ),
    ContentsFrame(
        name="hiking-flask",
        container="flask",
        pairs=(("coffee", "tea"), ("juice", "water"), ("tea", "juice"), ("water", "coffee")),
        opening="{name} and {friend} are on a long hike.",
        filled="That morning {friend} filled the flask with {inside}, but left a tag with the word "
        '"{label}" hanging on it.',
        unseen="{name} was still asleep when the flask was filled. Now {he} carries it, still closed, and reads "
        "the tag.",
        agreed='That morning {friend} filled the flask with {inside} and hung a tag with the word "{inside}" '
        "on it. The {label} stayed at home.",
        told="{name} carries the flask and reads the tag. {friend} tells {him} that {inside} went into the flask "
        'that morning and that the tag should not say "{label}". {name} believes {friend}.',
        seen="The flask has no cap. {name} reads the tag, then takes a sip of {inside} and knows that it is not "
        "{label}.",
        holds="is filled with",
    ),
    ContentsFrame(
        name="nursery-bin",
        container="bin",
        pairs=(("toys", "books"), ("shoes", "marbles"), ("socks", "towels"), ("gloves", "toys")),
        opening="{name} starts work at a nursery today.",
        filled='The sign on the blue bin reads "{label}", but yesterday the children filled the bin with '
        "{inside}.",
        unseen="A wooden cover lies on the bin, and nobody has told {name} about it. {He} reads the sign.",
        agreed="Yesterday the children carried all the {label} outside and filled the blue bin with {inside}. "
        'The sign on the bin reads "{inside}".',
        told="{name} reads the sign. {friend}, who was there yesterday, explains that the sign is wrong about "
        "the {label} and that the bin is full of {inside}. {name} believes {friend}.",
        seen="The bin has no cover. {name} reads the sign, then bends over the bin and sees no {label}, just a "
        "heap of {inside}.",
    ),
)

FISHER_FRAMES = (
    ContentsFrame(
        name="farm-sack",
        container="sack",
        pairs=(("oats", "corn"), ("wheat", "carrots"), ("onions", "potatoes"), ("apples", "oats")),
        opening="{name} fetches supplies from a farm.",
        filled="The farmer has stuffed {inside} into a sack that was meant for something else, with "
        '"{label}" printed on it in big letters.',
        unseen="The sack is tied with a knot. {name} lifts it onto the cart without untying it and glances at "
        "the print.",
    ),
    ContentsFrame(
        name="guest-tin",
        container="tin",
        pairs=(("raisins", "nuts"), ("pins", "noodles"), ("figs", "pasta"), ("cinnamon", "pepper")),
        opening="{name} visits {friend}'s family for the first time and goes to fetch a tin from the cupboard.",
        filled="A picture on the tin shows {label}, but the family has always kept {inside} in it.",
        unseen="The tin is closed, and nobody has explained it to {name}. {He} looks at the picture.",
    ),
    ContentsFrame(
        name="harbor-crate",
        container="crate",
        pairs=(("oranges", "lemons"), ("bricks", "grapes"), ("onions", "pears"), ("peaches", "bricks")),
        opening="Yesterday {friend} worked at the harbor.",
        filled="{friend} loaded {inside} into a wooden crate, nailed it shut and, by mistake, sprayed "
        '"{label}" on the side.',
        unseen="Today it is {name}'s turn to work, and the two have not talked. {name} walks up to the crate and "
        "studies its side.",
    ),
    ContentsFrame(
        name="market-pot",
        container="pot",
        pairs=(("honey", "butter"), ("jam", "cheese"), ("figs", "olives"), ("cherries", "honey")),
        opening="At a market stall, {name} picks up a pot with a tight lid.",
        filled='The paper on the lid announces "{label}". In truth, the seller ran out of paper for the right '
        "kind and spooned {inside} into the pot.",
        unseen="The seller says nothing about it. {name} reads the paper, pays and walks home with the pot.",
    ),
    ContentsFrame(
        name="bakery-carton",
        container="carton",
        pairs=(("eggs", "grapes"), ("pears", "eggs"), ("apples", "cherries"), ("noodles", "raisins")),
        opening="{friend} is packing an order for {name}.",
        filled="{friend} fills a carton with {inside}. Only old cartons are left, and this one has "
        '"{label}" printed on all four sides.',
        unseen="The flaps are glued down before {name} arrives to collect the order. {name} looks at the print.",
    ),
    ContentsFrame(
        name="train-pouch",
        container="pouch",
        pairs=(("shells", "pens"), ("seeds", "pins"), ("needles", "chalk"), ("feathers", "stones")),
        opening="On an empty train, {name} finds a leather pouch under a seat.",
        filled='Somebody has stitched the word "{label}" on the pouch, yet its owner has filled it to the top '
        "with {inside}.",
        unseen="{name} has never met the owner and does not untie the pouch. {He} looks at the stitched word.",
    ),
    ContentsFrame(
        name="cellar-barrel",
        container="barrel",
        pairs=(("wine", "milk"), ("honey", "wine"), ("ink", "paint"), ("cream", "honey")),
        opening="In a deep cellar stands an old barrel.",
        filled="This morning {friend} pumped {inside} into it and forgot to wipe off the chalk mark, which says "
        '"{label}".',
        unseen="At noon {name} comes down the stairs alone. {He} cannot see through the wood and goes by the "
        "chalk mark.",
        holds="contains",
    ),
    ContentsFrame(
        name="craft-packet",
        container="packet",
        pairs=(("ribbons", "feathers"), ("thread", "wool"), ("cotton", "string"), ("pins", "ribbons")),
        opening="{name} buys a packet in a craft shop.",
        filled="The wrapper promises {label}. The machine in the factory was set wrongly, however, and filled "
        "this packet with {inside}.",
        unseen="{name} has studied the wrapper but has not torn it yet. {He} brings the packet home.",
        holds="contains",
    ),
    ContentsFrame(
        name="art-tub",
        container="tub",
        pairs=(("glue", "paint"), ("sand", "chalk"), ("ink", "glue"), ("soap", "sand")),
        opening="{name} comes to the art class for the first time.",
        filled="Before the lesson, {friend} scooped {inside} into a white tub whose side, from earlier days, "
        'still says "{label}".',
        unseen="When {name} enters, the tub is covered and {friend} has gone. {name} notices the word on its "
        "side.",
        holds="is filled with",
    ),
    ContentsFrame(
        name="beach-bucket",
        container="bucket",
        pairs=(("shells", "rope"), ("stones", "string"), ("bricks", "sand"), ("rope", "soap")),
        opening="A red bucket stands on the beach.",
        filled='The fishermen once painted "{label}" on it, but this morning they filled it with {inside} and '
        "laid a board on top.",
        unseen="At noon {name} comes along, when the fishermen are far out at sea. {He} leaves the board in its "
        "place and reads the painted word.",
    ),
)
