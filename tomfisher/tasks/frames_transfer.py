"""Story frames of the family "unexpected transfer": ten for evaluation, ten for Fisher samples.

Within a pool the order in which the two places are first and last mentioned is balanced over the frames, in
every condition, so that neither "the first place" nor "the last place" is a way to the answer.
"""

from __future__ import annotations

from tomfisher.tasks.frames import TransferFrame

LOOKS = "will look for the {thing}"

EVALUATION_FRAMES = (
    TransferFrame(
        name="shared-flat",
        things=("camera", "wallet", "phone"),
        pairs=(("drawer", "basket"), ("closet", "drawer"), ("cabinet", "basket"), ("box", "closet")),
        opening="{name} and {friend} share a small flat. In the morning {name} puts the {thing} in the {start}.",
        moved="Then {he} leaves for work. At noon {friend} takes the {thing} out of the {start} and puts it in "
        "the {end}.",
        back="{friend} does not call or write. In the evening {name} comes home and wants the {thing}.",
        stays="Then {he} leaves for work. At noon {friend} drops in, does not touch the {thing} and takes an "
        "old newspaper out of the {end}.",
        told="At once {friend} sends {him} a message: the {thing} is now in the {end} and no longer in the "
        "{start}. {name} reads it and believes it.",
        watched="{name} stays at home all day. At noon {he} watches {friend} take the {thing} out of the {start} "
        "and put it in the {end}.",
    ),
    TransferFrame(
        name="sports-club",
        things=("ball", "racket", "helmet"),
        pairs=(("basket", "bag"), ("box", "basket"), ("closet", "box"), ("cabinet", "bag")),
        opening="In the sports club there is a {end} and also a {start}. After training, {name} puts the {thing} "
        "in the {start}.",
        moved="{He} goes to take a shower. While the water runs, {friend} moves the {thing} to the {end}, so "
        "that nothing is left in the {start}.",
        back="{name} has heard and seen nothing behind the closed door. {He} comes out of the shower and wants "
        "the {thing}.",
        stays="{He} goes to take a shower. While the water runs, {friend} looks for a towel in the {end}, but "
        "the {thing} stays in the {start}.",
        told="When {name} comes out, {friend} tells {him} that the {start} is empty and that the {thing} is in "
        "the {end}. {name} believes {friend} and wants the {thing}.",
        watched="{name} is still tying {his} shoes when {friend} moves the {thing} to the {end}, and {he} sees "
        "that nothing is left in the {start}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="old-house",
        things=("ladder", "guitar", "carpet"),
        pairs=(("garage", "attic"), ("library", "garage"), ("office", "attic"), ("pantry", "library")),
        opening="{name} and {friend} live in an old house. On Saturday {name} leaves the {thing} in the {start}.",
        moved="Then {he} travels to a wedding. On Sunday {friend} carries the {thing} to the {end}, because rain "
        "is dripping into the {start}.",
        back="The two have not spoken since Saturday. On Monday {name} comes back.",
        stays="Then {he} travels to a wedding. On Sunday {friend} finds the {thing} where it was and "
        "only mops up some rain in the {end}.",
        told="On the phone {friend} explains that the {thing} could not stay in the {start} and is now in the "
        "{end}. {name} believes {friend} and comes back on Monday.",
        watched="On Sunday {name} stands on the stairs and watches {friend} carry the {thing} to the {end}, "
        "because rain is dripping into the {start}.",
    ),
    TransferFrame(
        name="art-room",
        things=("brush", "ruler", "notebook"),
        pairs=(("drawer", "cabinet"), ("box", "drawer"), ("closet", "cabinet"), ("basket", "box")),
        opening="The art room has a {end} on the left and a {start} on the right. {name} puts the {thing} in the "
        "{start} when the bell rings.",
        moved="{He} runs out to play. During the break {friend} tidies up and takes the {thing} from the {start} "
        "to the {end}.",
        back="From the yard {name} cannot see into the art room. After the break {he} comes in and needs the "
        "{thing}.",
        stays="{He} runs out to play. During the break {friend} tidies up the {end} but does not touch anything "
        "in the {start}.",
        told="After the break {friend} meets {him} at the door and says that the {thing} has gone to the {end} "
        "and is not in the {start} now. {name} believes it.",
        watched="{name} stays inside during the break. {He} looks on as {friend} tidies up and takes the {thing} "
        "from the {start} to the {end}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="lake-camp",
        things=("lamp", "map", "compass"),
        pairs=(("tent", "car"), ("boat", "backpack"), ("car", "backpack"), ("tent", "boat")),
        opening="{name} and {friend} are camping by a lake. After breakfast {name} stores the {thing} in the "
        "{start}.",
        moved="Then {he} swims far out. {friend} clears up, and the {thing} goes from the {start} into the "
        "{end}.",
        back="Out on the lake {name} sees nothing of what happens on the shore. {He} swims back and wants the "
        "{thing}.",
        stays="Then {he} swims far out. {friend} reads a book beside the {end} all morning, and the {thing} "
        "remains in the {start}.",
        told="When {name} swims back, {friend} lets {him} know that the {thing} was in the way in the {start} "
        "and is now in the {end}. {name} believes it.",
        watched="{name} lies in the grass and watches what happens next: {friend} takes the {thing} to the "
        "{end} and cleans the {start}.",
    ),
    TransferFrame(
        name="warm-cake",
        things=("cake", "pie", "bread"),
        pairs=(("fridge", "pantry"), ("oven", "fridge"), ("pantry", "oven"), ("cabinet", "fridge")),
        opening="Two places at home are free, the {end} and the {start}. {name} puts the {thing} in the {start}.",
        moved="{He} goes upstairs for a nap. Soon {friend} moves the {thing} to the {end} and wipes out the "
        "{start}.",
        back="{name} sleeps through it all. When {he} wakes up, {he} is hungry and wants the {thing}.",
        stays="{He} goes upstairs for a nap. {friend} leaves the {thing} alone and only wipes out the {end}.",
        told="When {name} wakes up, {friend} says that the {thing} had to go to the {end}, because there was "
        "water in the {start}. {name} believes it.",
        watched="{name} sits at the table and sees how {friend} empties the {start} and puts the {thing} in the "
        "{end}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="lost-property",
        things=("scarf", "bracelet", "glove"),
        pairs=(("box", "drawer"), ("basket", "cabinet"), ("drawer", "basket"), ("cabinet", "box")),
        opening="A hotel bar keeps lost things in two places, a {end} and a {start}. {name} finds a {thing} "
        "under a table and puts it in the {start}.",
        moved="Then {he} goes home. Later {friend} decides that the {thing} belongs in the {end} and takes it "
        "there from the {start}.",
        back="The next morning {name} is back at work and has not talked to anyone. A woman asks for the {thing}.",
        stays="Then {he} goes home. Later {friend} checks the lost things, leaves the {thing} where it is and "
        "locks the {end}.",
        told="The next morning {friend} tells {name} that the {thing} is not in the {start} any more, but in the "
        "{end}. {name} believes it.",
        watched="{name} stays a while. {friend} decides that the {thing} belongs in the {end}, and {name} "
        "watches {friend} take it there from the {start}.",
    ),
    TransferFrame(
        name="birthday-present",
        things=("drum", "robot", "kite"),
        pairs=(("closet", "garage"), ("attic", "car"), ("cabinet", "attic"), ("car", "closet")),
        opening="Tomorrow is a little boy's birthday. His present is a {thing}, and {name} hides it in the "
        "{start}.",
        moved="Then {he} goes shopping. The boy comes near, so {friend} quickly takes the {thing} out of the "
        "{start} and hides it in the {end}.",
        back="{name} has heard nothing from {friend}. Late at night {he} comes home and wants to wrap the "
        "{thing}.",
        stays="Then {he} goes shopping. The boy comes near and searches the {end}, while the {thing} lies safely "
        "in the {start}.",
        told="In the shop {name} gets a call from {friend}: the {thing} is now in the {end}, since the boy came "
        "too close to the {start}. {name} believes it.",
        watched="The boy comes near. Before {name}'s eyes, {friend} takes the {thing} out of the {start} and "
        "hides it in the {end}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="newsroom",
        things=("report", "folder", "stapler"),
        pairs=(("cabinet", "desk"), ("drawer", "closet"), ("desk", "box"), ("closet", "cabinet")),
        opening="In the newsroom everyone may use the {end} and the {start}. Before lunch {name} puts the "
        "{thing} in the {start}.",
        moved="While {he} is eating in another building, {friend} borrows the {thing} and does not return it to "
        "the {start}, but puts it in the {end}.",
        back="At one o'clock {name} walks in, without having talked to anyone, and needs the {thing}.",
        stays="While {he} is eating in another building, {friend} sorts the papers in the {end}. The {thing} "
        "stays untouched in the {start}.",
        told="On the way back {name} meets {friend}, who says that the {thing} is in the {end} now, since there "
        "was no room in the {start}. {name} believes it.",
        watched="{name} has lunch at {his} table and sees everything. {friend} borrows the {thing}, then puts it "
        "in the {end} and closes the empty {start}.",
    ),
    TransferFrame(
        name="hotel-room",
        things=("ring", "diary", "necklace"),
        pairs=(("drawer", "closet"), ("cabinet", "drawer"), ("desk", "cabinet"), ("closet", "desk")),
        opening="{name} is staying at a hotel. Before breakfast {he} puts the {thing} in the {start} in {his} "
        "room.",
        moved="While {he} is downstairs, {friend}, who cleans the rooms, puts the {thing} in the {end} and dusts "
        "the {start}.",
        back="{name} knows nothing of the cleaning. After breakfast {he} returns and wants the {thing}.",
        stays="While {he} is downstairs, {friend}, who cleans the rooms, does not touch the {thing} and dusts "
        "the {end}.",
        told="After breakfast {friend} tells {him} that the {start} had to be dusted and that the {thing} is now "
        "in the {end}. {name} believes it.",
        watched="{He} has breakfast in bed and watches {friend}, who cleans the rooms, dust the {start} and put "
        "the {thing} in the {end}.",
        asks=LOOKS,
    ),
)

FISHER_FRAMES = (
    TransferFrame(
        name="farm-tools",
        things=("shovel", "saw", "hose"),
        pairs=(("barn", "shed"), ("shed", "truck"), ("truck", "barn"), ("garden", "shed")),
        opening="{name} works on a farm. At sunrise {he} leaves the {thing} in the {start}.",
        moved="Then {he} rides to the village. Around ten, {friend} fetches the {thing} from the {start} and "
        "stows it in the {end}.",
        back="{name} has no phone with {him}. Back on the farm, {he} needs the {thing}.",
    ),
    TransferFrame(
        name="backstage",
        things=("mask", "crown", "wig"),
        pairs=(("chest", "trunk"), ("trunk", "case"), ("case", "chest"), ("trunk", "wagon")),
        opening="Backstage are a {end} and a {start}. After the rehearsal {name} lays the {thing} in the {start}.",
        moved="While {he} talks to the director outside, {friend} slips the {thing} into the {end} and shuts the "
        "empty {start}.",
        back="{name} returns without having noticed anything. The play begins, and {he} needs the {thing}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="sick-day",
        things=("radio", "clock", "fan"),
        pairs=(("bedroom", "kitchen"), ("kitchen", "bathroom"), ("hall", "bedroom"), ("bathroom", "hall")),
        opening="{name} is ill. {He} switches off the {thing} in the {start} and falls asleep on the couch.",
        moved="Meanwhile {friend} comes in and quietly sets up the {thing} in the {end}, because {friend} does "
        "not want any noise in the {start}.",
        back="{friend} has already gone when {name} wakes up. {name} would like to have the {thing}.",
    ),
    TransferFrame(
        name="train-ride",
        things=("key", "novel", "bell"),
        pairs=(("purse", "jacket"), ("case", "purse"), ("jacket", "case"), ("tin", "jacket")),
        opening="On the train, a {end} and a {start} lie between {name} and {friend}. {name} sticks the {thing} "
        "in the {start} and goes to the dining car.",
        moved="As soon as {he} is gone, {friend} takes the {thing} from the {start} and puts it in the {end}.",
        back="{name} eats soup three cars away. An hour later {he} sits down again and reaches for the {thing}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="dance-school",
        things=("speaker", "mirror", "screen"),
        pairs=(("gym", "lobby"), ("lobby", "hall"), ("studio", "gym"), ("hall", "studio")),
        opening="{name} teaches dance. After the first lesson {he} leaves the {thing} in the {start}.",
        moved="{name} is in a meeting upstairs when {friend} pulls the {thing} out of the {start} and parks it in "
        "the {end}.",
        back="No one mentions it to {name}. The second lesson starts soon, and {he} has to get the {thing}.",
    ),
    TransferFrame(
        name="market-fish",
        things=("fish", "chicken", "turkey"),
        pairs=(("freezer", "sink"), ("bowl", "freezer"), ("sink", "bowl"), ("pot", "sink")),
        opening="With the {end} and the {start} both empty, {name} has a choice. {He} puts the {thing} in the "
        "{start} and goes to buy spices.",
        moved="A few minutes later {friend} shifts the {thing} to the {end} and scrubs the {start}.",
        back="By the time {name} is back from the market, {friend} has left without a note. {name} wants to cook "
        "the {thing}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="boat-yard",
        things=("drill", "pump", "anchor"),
        pairs=(("cabin", "workshop"), ("workshop", "van"), ("van", "cabin"), ("basement", "workshop")),
        opening="{name} repairs ships. On Friday evening {he} leaves the {thing} in the {start}.",
        moved="During the weekend {friend} brings the {thing} to the {end}, since somebody will clean the "
        "{start}.",
        back="On Monday {name} arrives early, before anybody can talk to {him}. Work starts as soon as {he} has "
        "the {thing}.",
    ),
    TransferFrame(
        name="playground",
        things=("doll", "whistle", "puppet"),
        pairs=(("wagon", "trunk"), ("chest", "wagon"), ("case", "chest"), ("bucket", "wagon")),
        opening="Near the swings stand a {end} and a {start}. {name} drops the {thing} into the {start}.",
        moved="Then {his} mother calls {him} indoors. Left alone, {friend} lifts the {thing} out of the {start} "
        "and hides it in the {end}.",
        back="Ten minutes later {name} comes running back, sure that nothing has changed, and wants to play with "
        "the {thing}.",
        asks=LOOKS,
    ),
    TransferFrame(
        name="neighbors",
        things=("scooter", "tripod", "wheelbarrow"),
        pairs=(("garden", "basement"), ("basement", "shed"), ("shed", "garden"), ("barn", "basement")),
        opening="{name} and {friend} are neighbors and own a {thing} together. On Tuesday {name} returns it to "
        "the {start}, as always.",
        moved="On Wednesday, when {name} is at the dentist, {friend} brings the {thing} from the {start} to the "
        "{end}.",
        back="They have not met since Tuesday. On Thursday {name} would like to use the {thing}.",
    ),
    TransferFrame(
        name="night-porter",
        things=("flashlight", "raincoat", "logbook"),
        pairs=(("lobby", "kitchen"), ("kitchen", "gym"), ("hall", "lobby"), ("studio", "kitchen")),
        opening="The {end} is dark, and so is the {start}. {name}, the night porter, leaves the {thing} in the "
        "{start} and walks around the building.",
        moved="A minute later {friend} passes by, carries the {thing} to the {end} and locks the {start}.",
        back="{name} has met nobody outside. At midnight {he} needs the {thing}.",
        asks=LOOKS,
    ),
)
