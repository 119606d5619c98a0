"""Story frames of the family "second order": eight for evaluation, eight for Fisher samples.

One person moves a thing that both have put away. The other may learn of it, and the first may or may not know
that. Within a pool the order in which the two places are first and last mentioned is balanced over the frames,
in every condition, so that neither "the first place" nor "the last place" is a way to the answer.
"""

from __future__ import annotations

from tomfisher.tasks.frames import SecondOrderFrame

LOOKS = "will look for the {thing}"

EVALUATION_FRAMES = (
    SecondOrderFrame(
        name="flat-mates",
        things=("camera", "wallet", "diary"),
        pairs=(("drawer", "basket"), ("closet", "drawer"), ("cabinet", "box"), ("box", "basket")),
        opening="{name} and {friend} rent a flat together. Before breakfast {friend} puts the {thing} in the "
        "{start}, and {name} sees it.",
        away="Then {friend} goes down to the street to repair a bicycle.",
        moved="{name} takes the {thing} out of the {start} and puts it in the {end}.",
        seen="{friend} sees all of this through the window, but {name} does not notice that.",
        noticed="{friend} sees all of this through the window. {name} looks out and notices that {friend} is "
        "watching.",
        missed="Down in the street {friend} can see nothing of the flat, and {name} knows it.",
        stays="{name} leaves the {thing} where it is and only dusts the {end}.",
        watched="{friend} stays at the table and watches {name} take the {thing} out of the {start} and put it "
        "in the {end}.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="choir-room",
        things=("folder", "drum", "guitar"),
        pairs=(("closet", "office"), ("library", "closet"), ("office", "library"), ("attic", "closet")),
        opening="{name} and {friend} play in a band. After the concert {friend} leaves the {thing} in the "
        "{start}, as both of them know.",
        away="{friend} walks to the parking lot to wait for the bus.",
        moved="Meanwhile {name} carries the {thing} to the {end} and sweeps the {start}.",
        seen="{friend} has come back for a coat and sees this from the dark stairs. {name} has no idea that "
        "anybody is there.",
        noticed="{friend} has come back for a coat and sees this from the stairs. {name} turns around, sees "
        "{friend} standing there and waves.",
        missed="At the parking lot {friend} can see nothing of the building, and {name} is aware of that.",
        stays="Meanwhile {name} sweeps the {end} and does not touch the {thing} in the {start}.",
        watched="{friend} stays to help and looks on as {name} carries the {thing} to the {end} and sweeps the "
        "{start}.",
    ),
    SecondOrderFrame(
        name="canoe-trip",
        things=("map", "lamp", "compass"),
        pairs=(("tent", "boat"), ("car", "tent"), ("boat", "backpack"), ("backpack", "car")),
        opening="{name} and {friend} travel along a river with a {end} and a {start}. In the evening {friend} "
        "puts the {thing} in the {start} while {name} looks on.",
        away="Then {friend} goes into the forest to gather wood.",
        moved="{name} takes the {thing} out of the {start} and moves it to the {end}.",
        seen="{friend} has stopped between the trees and sees everything. {name} believes that {friend} is "
        "already far away and sees nothing.",
        noticed="{friend} has stopped between the trees and sees everything. {name} notices {friend} there, "
        "and both of them laugh.",
        missed="Deep in the forest {friend} sees nothing of the camp, and {name} knows it.",
        stays="{name} does not touch the {thing} and only wipes the rain off the {end}.",
        watched="{friend} sits down beside {name} and watches {him} take the {thing} out of the {start} and "
        "move it to the {end}.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="shared-room",
        things=("stapler", "report", "phone"),
        pairs=(("drawer", "cabinet"), ("cabinet", "desk"), ("box", "drawer"), ("desk", "box")),
        opening="{name} and {friend} share a room at work with one {end} and one {start}. In front of {name}, "
        "{friend} puts the {thing} in the {start}.",
        away="Then {friend} leaves to talk to the boss.",
        moved="{name} wants more space: the {thing} goes into the {end}, and {his} own papers go into the "
        "{start}.",
        seen="The door has a pane of glass, and {friend} sees what {name} does. {name} has {his} back to the "
        "door and is unaware of it.",
        noticed="The door has a pane of glass, and {friend} sees what {name} does. {name} turns to the door and "
        "notices {friend} behind the glass.",
        missed="With the boss {friend} sees and hears nothing of it, and {name} knows that.",
        stays="{name} wants more space and tidies the {end}, but the {thing} remains in the {start}.",
        watched="{friend} stays and looks on as {name} makes space: the {thing} goes into the {end}, and {his} "
        "own papers go into the {start}.",
    ),
    SecondOrderFrame(
        name="cool-pastry",
        things=("cake", "pie", "bread"),
        pairs=(("fridge", "pantry"), ("pantry", "oven"), ("oven", "cabinet"), ("cabinet", "fridge")),
        opening="{name} and {friend} bake together. Both of them are there when {friend} stores the {thing} in "
        "the {start}.",
        away="{friend} then lies down on the sofa in the next room.",
        moved="{name} is afraid of ants, takes the {thing} out of the {start} and puts it in the {end}.",
        seen="{friend} is awake and watches through the half-open door. {name} does not suspect that.",
        noticed="{friend} is awake and watches through the half-open door. {name} notices it and smiles at "
        "{friend}.",
        missed="{friend} falls asleep at once and sees nothing, and {name} knows it from the snoring.",
        stays="{name} is afraid of ants and does not move the {thing}, but looks for them in the {end}.",
        watched="{friend} stays beside {name} and watches {him} take the {thing} out of the {start} and put it "
        "in the {end}.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="small-museum",
        things=("necklace", "ring", "bracelet"),
        pairs=(("cabinet", "drawer"), ("closet", "box"), ("drawer", "closet"), ("box", "cabinet")),
        opening="{name} and {friend} work in a small museum. They agree to keep the {thing} in the {start}, and "
        "{friend} puts it there.",
        away="At noon {friend} goes home for lunch.",
        moved="{name} puts the {thing} in the {end} instead and locks the empty {start}.",
        seen="At home {friend} sees the whole scene in a video from the museum. It does not occur to {name} that "
        "there is one.",
        noticed="At home {friend} sees the whole scene in a video from the museum. {friend} calls and says so, "
        "and {name} believes it.",
        missed="At home {friend} reads a magazine and hears nothing from the museum, and {name} knows that.",
        stays="{name} finds that the {end} is dusty and does not take the {thing} out of the {start}.",
        watched="At noon {friend} stays there and helps {name} to put the {thing} in the {end} and to lock the "
        "empty {start}.",
    ),
    SecondOrderFrame(
        name="music-lesson",
        things=("kite", "robot", "ball"),
        pairs=(("bag", "closet"), ("basket", "bag"), ("closet", "box"), ("box", "basket")),
        opening="In the classroom there are a {end} and a {start}. {friend} puts the {thing} in the {start}, and "
        "{name} is standing beside {friend}.",
        away="When the bell rings, {friend} walks off to the music lesson.",
        moved="{name} pulls the {thing} out of the {start} and pushes it into the {end}.",
        seen="{friend} passes the window once more and sees it happen. {name} does not look at the window.",
        noticed="{friend} passes the window once more and sees it happen. {name} looks at the window and notices "
        "{friend} there.",
        missed="During the music lesson {friend} sees nothing of the classroom, as {name} knows.",
        stays="{name} does not go near the {thing} and only draws a star on the {end}.",
        watched="Before the lesson {friend} waits with {name} and watches {him} pull the {thing} out of the "
        "{start} and push it into the {end}.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="dry-storage",
        things=("ladder", "carpet", "guitar"),
        pairs=(("garage", "attic"), ("library", "garage"), ("pantry", "library"), ("attic", "pantry")),
        opening="In the old house both the {end} and the {start} are dry. {name} helps {friend} to carry the "
        "{thing} to the {start}.",
        away="Afterwards {friend} drives into town.",
        moved="{name} drags the {thing} to the {end}, because {he} wants to paint the {start}.",
        seen="{friend} has forgotten a shopping list, turns back and sees it from the street. {name} does not "
        "see {friend} and thinks that only the cat was watching.",
        noticed="{friend} has forgotten a shopping list, turns back and sees it from the street. {name} notices "
        "{friend} and waves.",
        missed="In town {friend} sees and hears nothing of the house, and {name} knows it.",
        stays="{name} measures the {end} for new shelves and does not take the {thing} out of the {start}.",
        watched="{friend} stays a little longer and watches {name} drag the {thing} to the {end}, because {he} "
        "wants to paint the {start}.",
    ),
)
FISHER_FRAMES = (
    SecondOrderFrame(
        name="dawn-on-the-farm",
        things=("shovel", "hose", "saw"),
        pairs=(("barn", "shed"), ("shed", "garden"), ("garden", "barn"), ("truck", "shed")),
        opening="{name} and {friend} run a small farm. At dawn the two of them put the {thing} in the {start}.",
        away="{friend} then rides out to the fields.",
        moved="An hour later {name} takes the {thing} from the {start} and brings it to the {end}.",
        seen="From the hill {friend} can see the yard and follows every step. {name} does not know that the yard "
        "can be seen from there.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="curtain-call",
        things=("mask", "crown", "wig"),
        pairs=(("trunk", "case"), ("case", "chest"), ("chest", "trunk"), ("bucket", "chest")),
        opening="{name} and {friend} get ready for a play. {friend} lays the {thing} in the {start} while {name} "
        "watches.",
        away="{friend} goes out on the stage.",
        moved="{name} quickly puts the {thing} in the {end} and sits down on the {start}.",
        seen="Through a gap in the curtain {friend} sees it. {name} believes that the curtain is closed and that "
        "{friend} sees nothing.",
    ),
    SecondOrderFrame(
        name="night-train",
        things=("novel", "radio", "clock"),
        pairs=(("case", "purse"), ("jacket", "case"), ("purse", "tin"), ("tin", "jacket")),
        opening="On the night train {name} and {friend} have a {end} and a {start} between them. {friend} puts "
        "the {thing} in the {start} and says so to {name}.",
        away="{friend} climbs into the upper bed and turns to the dark window.",
        moved="{name} takes the {thing} out of the {start} and slips it into the {end}.",
        seen="The window shows {friend} all of it. {name} does not think of the window and believes that {friend} "
        "sees nothing.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="evening-course",
        things=("speaker", "screen", "mirror"),
        pairs=(("gym", "lobby"), ("lobby", "hall"), ("studio", "gym"), ("hall", "studio")),
        opening="An evening course uses a {end} and a {start}. {name} and {friend} roll the {thing} into the "
        "{start}.",
        away="{friend} leaves to change clothes.",
        moved="{name} pushes the {thing} on to the {end} and locks the {start}.",
        seen="{friend} watches from the gallery above. {name} does not look up and has no idea of it.",
    ),
    SecondOrderFrame(
        name="soup-day",
        things=("fish", "turkey", "chicken"),
        pairs=(("freezer", "sink"), ("bowl", "freezer"), ("sink", "bowl"), ("pot", "sink")),
        opening="{friend} cooks, and {name} keeps {friend} company. Both of them see {friend} put the {thing} in "
        "the {start}.",
        away="{friend} is called to the telephone in the next room.",
        moved="{name} lifts the {thing} out of the {start} and drops it into the {end}.",
        seen="{friend} has left the door ajar and sees it. {name} believes that the door is closed and does not "
        "turn around.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="boat-builders",
        things=("pump", "anchor", "drill"),
        pairs=(("cabin", "workshop"), ("workshop", "van"), ("van", "cabin"), ("basement", "workshop")),
        opening="{name} and {friend} build boats. On Friday the two of them leave the {thing} in the {start}.",
        away="On Saturday {friend} has a day off.",
        moved="{name} comes to work alone, moves the {thing} to the {end} and cleans the {start}.",
        seen="{friend} happens to walk by with the dog and sees it over the fence. {name} does not notice anybody.",
    ),
    SecondOrderFrame(
        name="green-lawn",
        things=("doll", "puppet", "whistle"),
        pairs=(("wagon", "trunk"), ("chest", "wagon"), ("case", "chest"), ("bucket", "case")),
        opening="A {end} and a {start} stand side by side on the lawn. {name} watches {friend} put the {thing} in "
        "the {start}.",
        away="{friend} runs home to drink a glass of water.",
        moved="{name} takes the {thing} out of the {start} and throws it into the {end}.",
        seen="From a window upstairs {friend} sees it, with the glass in one hand. {name} does not look up at the "
        "house.",
        asks=LOOKS,
    ),
    SecondOrderFrame(
        name="two-families",
        things=("scooter", "tripod", "wheelbarrow"),
        pairs=(("basement", "shed"), ("garden", "basement"), ("shed", "garden"), ("barn", "basement")),
        opening="The families of {name} and {friend} share the {end} and the {start}. Together the two of them "
        "bring the {thing} to the {start}.",
        away="{friend} leaves for the weekend.",
        moved="{name} carries the {thing} to the {end}, to make room in the {start}.",
        seen="A cousin tells {friend} all about it on the phone. {name} does not know of that call.",
    ),
)
